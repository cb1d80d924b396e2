"""What is asked of an engine, and what it returns."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mergekit_av.evaluation.tasks import Task
from mergekit_av.models.decoding import Decoding


class Job(NamedTuple):
    """What to measure.

    Attributes:
        lambdas: vector → λ; vectors that are not named are at 0.
        task: the records.
        decoding: how the model answers the records' prompts; None where the records' own
            responses are scored.
    """

    lambdas: Mapping[str, float]
    task: Task
    decoding: Decoding | None = None


class Measured(NamedTuple):
    """What came out.

    Attributes:
        number: of the job, in the list that it was part of.
        value: for a store. Of responses the mean log-probabilities, nats per token, a list a
            record; of answers the texts.
        seconds: how long it took.
    """

    number: int
    value: Any
    seconds: float
