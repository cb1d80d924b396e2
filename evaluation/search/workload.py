"""What is measured at each setting of a search."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mergekit_av.evaluation.fluency import Fluency, fluency
from mergekit_av.evaluation.measure.cache import Cache
from mergekit_av.evaluation.measure.requests import Generate, Request, Score
from mergekit_av.evaluation.tasks import Task
from mergekit_av.models.decoding import Decoding


@dataclass(frozen=True)
class Workload:
    """The records that are scored and the queries that are answered at a setting.

    Attributes:
        scored: the records whose responses are scored, a task a domain.
        queries: those that the model answers, for the fluency guard; none for no guard.
        decoding: how they are answered.
    """

    scored: tuple[Task, ...]
    queries: tuple[Task, ...] = ()
    decoding: Decoding = field(default_factory=Decoding)

    def requests(self, lambdas: Mapping[str, float]) -> list[Request]:
        """Return what is asked of an engine at a setting."""
        scored = [Score(lambdas, task) for task in self.scored]
        return [*scored, *(Generate(lambdas, task, self.decoding) for task in self.queries)]

    def damage(self, cache: Cache, lambdas: Mapping[str, float]) -> float:
        """Return the damage (`Fluency.damage`) in the domain that has suffered most; 0 without a
        guard."""
        pairs = zip(self._fluency(cache, lambdas), self._fluency(cache, {}), strict=True)
        return max((measured.damage(base) for measured, base in pairs), default=0.0)

    def _fluency(self, cache: Cache, lambdas: Mapping[str, float]) -> list[Fluency]:
        """Measure the fluency in the domain of each task of queries."""
        return [
            fluency(
                cache.answers(lambdas, task, self.decoding),
                [cache.result(lambdas, some) for some in self.scored if some.name == task.name],
            )
            for task in self.queries
        ]
