"""Requests to an engine, and its replies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_av.evaluation.tasks import Task
from mergekit_av.models.decoding import Decoding


@dataclass(frozen=True)
class Score:
    """Ask for the mean log-probabilities of the records' own responses.

    Attributes:
        lambdas: vector → λ; vectors that are not named are at 0.
        task: the records.
    """

    lambdas: Mapping[str, float]
    task: Task

    def key(self) -> dict[str, Any]:
        """Return what a store's key says of the records."""
        return self.task.key()


@dataclass(frozen=True)
class Generate:
    """Ask for the model's own answers to the records' prompts.

    Attributes:
        lambdas: vector → λ; vectors that are not named are at 0.
        task: the records.
        decoding: how the answers are written.
    """

    lambdas: Mapping[str, float]
    task: Task
    decoding: Decoding

    def key(self) -> dict[str, Any]:
        """Return what a store's key says of the records, and of how they are answered."""
        return {**self.task.key(), **self.task.answers_key(), **self.decoding.key()}


Request = Score | Generate


@dataclass(frozen=True)
class Measured:
    """The reply to a request.

    Attributes:
        number: place of the request in the list that it was part of.
        value: JSON for a store. Of `Score` a list a record: the mean log-probability of each
            level, nats per token. Of `Generate` `answers`: record id → text and whether it ended.
        seconds: how long it took.
    """

    number: int
    value: Any
    seconds: float
