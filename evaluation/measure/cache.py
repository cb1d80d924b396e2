"""Measurements of a model at settings of its knobs, each made once and kept in a store."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mergekit_av.evaluation.accuracy import Result, summarise
from mergekit_av.evaluation.tasks import Task
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.generation import Answer
from mergekit_av.vectors.vector import AlignmentVector

from .engine import Measurer
from .requests import Job
from .store import Store

if TYPE_CHECKING:
    from .workers import Workers


@dataclass(frozen=True)
class Identity:
    """What decides the numbers, beside the setting and the records.

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
        cls, base: str, vectors: Mapping[str, AlignmentVector], rounding: str, seed: int,
        dtype: torch.dtype,
    ) -> "Identity":  # fmt: skip
        fingerprints = {name: vector.metadata.fingerprint for name, vector in vectors.items()}
        return cls(base, fingerprints, rounding, seed, str(dtype).removeprefix("torch."))

    def key(self, job: Job) -> dict[str, Any]:
        """Under which a store keeps a measurement."""
        # λ = 0 adds nothing, so that the base is measured once for all vectors.
        vectors = [
            [fingerprint, float(job.lambdas[name])]
            for name, fingerprint in self.vectors.items()
            if job.lambdas.get(name)
        ]
        key = {
            "base": self.base,
            "vectors": vectors,
            "rounding": self.rounding if vectors else None,
            "seed": self.seed if vectors else None,
            "dtype": self.dtype,
            "domain": job.task.name,
            "split": job.task.split,
            "prompt": job.task.prompt,
            "tokens": job.task.digest,
        }
        if job.decoding is None:
            return key
        return {**key, **job.task.answers_key(), **job.decoding.key()}


class Evaluator:
    """Reads back whatever was measured once, and lets the rest be measured.

    Args:
        engine: that measures, in this process or in others.
    """

    def __init__(self, engine: "Measurer | Workers", identity: Identity, store: Store):
        self.engine, self.identity, self.store = engine, identity, store

    def holds(self, job: Job) -> bool:
        """Whether a measurement is in the store already."""
        return self.identity.key(job) in self.store

    def seconds(self, job: Job) -> float:
        """How long a measurement in the store took; 0 where the store does not say."""
        return self.store.seconds(self.identity.key(job))

    def measure(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Measure what the store does not hold, and yield each such job once it is kept."""
        missing = [job for job in jobs if not self.holds(job)]
        for number, value, seconds in self.engine.measure(missing):
            self.store.put(self.identity.key(missing[number]), value, seconds)
            yield missing[number]

    def result(self, lambdas: Mapping[str, float], task: Task) -> Result:
        """Preference accuracies at a setting."""
        scores = torch.tensor(self._value(Job(lambdas, task)))
        ids = [record.id for record in task.records]
        return summarise(task.domain, task.split, ids, scores, task.too_long, task.equal)

    def written(
        self, lambdas: Mapping[str, float], task: Task, decoding: Decoding
    ) -> dict[str, Answer]:
        """Record id → the answer at a setting to the record's prompt."""
        kept = self._value(Job(lambdas, task, decoding))
        return {id: Answer(**answer) for id, answer in kept["answers"].items()}

    def _value(self, job: Job) -> Any:
        for _ in self.measure([job]):
            pass
        return self.store.get(self.identity.key(job))
