"""The workload of a search: what it measures at each setting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import Record
from mergekit_av.evaluation.fluency import Fluency, fluency
from mergekit_av.evaluation.measure.cache import Cache
from mergekit_av.evaluation.measure.requests import Generate, Request, Score
from mergekit_av.evaluation.tasks import Task, make_task
from mergekit_av.models.decoding import Decoding

from .config import SearchConfig


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


def make_workloads(
    config: SearchConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    domains: Sequence[Domain],
    wanted: Sequence[Domain],
    records: Mapping[str, Sequence[Record]],
) -> tuple[Workload, Workload]:
    """Choose what is measured on validation records, and on test records.

    Args:
        domains: to score.
        wanted: those of them that goals are about.
        records: domain → all that there are.

    Raises:
        AVError: no record of a domain fits the model's context.
    """
    decoding = config.decoding

    def tasks(
        some: Sequence[Domain], split: str, limit: int | None, new_tokens: int = 0
    ) -> tuple[Task, ...]:
        return tuple(
            make_task(
                model,
                tokenizer,
                domain,
                records[domain.name],
                split,
                limit=limit,
                new_tokens=new_tokens,
            )
            for domain in some
        )

    def workload(scored: Sequence[Domain], split: str, guard: bool) -> Workload:
        return Workload(
            tasks(scored, split, config.max_records),
            tasks(wanted, split, config.generate, decoding.max_new_tokens) if guard else (),
            decoding,
        )

    guard = bool(config.generate)
    # Without a limit to the damage, only what is found is looked at.
    limited = guard and config.tolerance < math.inf
    return workload(wanted, "validation", limited), workload(domains, "test", guard)
