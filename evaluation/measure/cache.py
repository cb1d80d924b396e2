"""A cache of measurements: each made once, and kept in a store."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from mergekit_av.evaluation.accuracy import Result, summarise
from mergekit_av.evaluation.tasks import Task
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.generation import Answer
from mergekit_av.vectors.vector import AlignmentVector

from .engine import Engine
from .requests import Generate, Request, Score
from .store import Store
from .workers import Workers

Measuring = TypeVar("Measuring", bound=Engine | Workers)


@dataclass(frozen=True)
class Identity:
    """Identify what decides the numbers, beside the setting and the records.

    Attributes:
        base: fingerprint of the base.
        vectors: name → fingerprint, in the order in which they are added.
        rounding, seed: as in a recipe.
        dtype: that the model computes in, e.g. `bfloat16`.
    """

    base: str
    vectors: dict[str, str]
    rounding: str
    seed: int
    dtype: str

    @classmethod
    def of(
        cls,
        base: str,
        vectors: Mapping[str, AlignmentVector],
        rounding: str,
        seed: int,
        dtype: torch.dtype,
    ) -> "Identity":
        """Take the vectors' fingerprints from their metadata."""
        fingerprints = {name: vector.metadata.fingerprint for name, vector in vectors.items()}
        return cls(base, fingerprints, rounding, seed, str(dtype).removeprefix("torch."))

    def key(self, request: Request) -> dict[str, Any]:
        """Return the key under which a store keeps a measurement."""
        # λ = 0 adds nothing, so that the base is measured once for all vectors.
        vectors = [
            [fingerprint, float(request.lambdas[name])]
            for name, fingerprint in self.vectors.items()
            if request.lambdas.get(name)
        ]
        return {
            "base": self.base,
            "vectors": vectors,
            "rounding": self.rounding if vectors else None,
            "seed": self.seed if vectors else None,
            "dtype": self.dtype,
            **request.key(),
        }


class Cache(Generic[Measuring]):
    """Read back what was measured before, and let an engine measure the rest.

    Args:
        engine: measures in this process or in others.
    """

    def __init__(self, engine: Measuring, identity: Identity, store: Store):
        self.engine, self.identity, self.store = engine, identity, store

    def __contains__(self, request: Request) -> bool:
        """Return whether the reply to a request is in the store already."""
        return self.identity.key(request) in self.store

    def seconds(self, request: Request) -> float:
        """Return how long a measurement in the store took; 0 where the store does not say."""
        return self.store.seconds(self.identity.key(request))

    def measure(self, requests: Sequence[Request]) -> Iterator[Request]:
        """Measure what the store does not hold, and yield each such request once it is kept."""
        missing = [request for request in requests if request not in self]
        for reply in self.engine.measure(missing):
            request = missing[reply.number]
            self.store.put(self.identity.key(request), reply.value, reply.seconds)
            yield request

    def result(self, lambdas: Mapping[str, float], task: Task) -> Result:
        """Return the preference accuracies at a setting."""
        scores = torch.tensor(self._value(Score(lambdas, task)))
        ids = [record.id for record in task.records]
        return summarise(task.domain, task.split, ids, scores, task.too_long, task.equal)

    def answers(
        self, lambdas: Mapping[str, float], task: Task, decoding: Decoding
    ) -> dict[str, Answer]:
        """Return record id → the answer at a setting to the record's prompt."""
        value = self._value(Generate(lambdas, task, decoding))
        return {id: Answer(**answer) for id, answer in value["answers"].items()}

    def _value(self, request: Request) -> Any:
        for _ in self.measure([request]):
            pass
        return self.store.get(self.identity.key(request))
