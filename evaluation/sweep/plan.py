"""The measurements that a sweep makes of each vector."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import Record
from mergekit_av.evaluation.measure.engine import Engine
from mergekit_av.evaluation.tasks import Task, make_task

from .config import SweepConfig


@dataclass(frozen=True)
class Plan:
    """The measurements of one vector.

    Attributes:
        own: the test records of the domain that has the vector's name; None where it is not scored.
        tasks: what is scored at each λ: the test records of every domain, and its own validation
            records.
        queries: to answer at each λ; None for none.
    """

    vector: str
    own: Task | None
    tasks: list[Task]
    queries: Task | None


def make_plans(
    config: SweepConfig,
    engine: Engine,
    vectors: Sequence[str],
    domains: Sequence[Domain],
    records: Mapping[str, Sequence[Record]],
    calibrated: Collection[str],
) -> list[Plan]:
    """Choose the records of each vector's measurements.

    Args:
        vectors: their names.
        records: domain → all that there are.
        calibrated: vectors of whose own domains validation records are scored as well.

    Raises:
        AVError: no record of a domain fits the model's context.
    """

    def task(domain: Domain, split: str, limit: int | None, new_tokens: int = 0) -> Task:
        return make_task(
            engine.model,
            engine.tokenizer,
            domain,
            records[domain.name],
            split,
            limit=limit,
            new_tokens=new_tokens,
        )

    tests = {domain.name: task(domain, "test", config.max_records) for domain in domains}
    plans = []
    for name in vectors:
        own, tasks, queries = tests.get(name), list(tests.values()), None
        domain = own.domain if own else domains[0]
        if name in calibrated:
            tasks.append(task(domain, "validation", config.max_records))
        if config.generate:
            queries = task(domain, "test", config.generate, config.decoding.max_new_tokens)
        plans.append(Plan(name, own, tasks, queries))
    return plans


def count_records(plans: Sequence[Plan]) -> dict[str, str]:
    """Return how many records each task scores, for the report."""
    counts = {}
    for task in (task for plan in plans for task in plan.tasks):
        reasons = [(task.too_long, "longer than the context"), (task.equal, "of equal responses")]
        left_out = ", ".join(f"{len(ids)} {why}" for ids, why in reasons if ids)
        count = str(len(task.records))
        counts[f"{task.name} {task.split}"] = (
            f"{count} ({left_out} left out)" if left_out else count
        )
    return counts
