"""The outcome of a search for a goal: the best setting, and what it does on test records."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from mergekit_av.evaluation.accuracy import Result
from mergekit_av.evaluation.measure.cache import Cache

from .landscape import Landscape, Setting, obstacles
from .problem import Goal, Question
from .workload import Workload


@dataclass(frozen=True)
class Outcome:
    """The answer to a goal.

    Attributes:
        goal: domain → wanted level.
        lambdas: vector → λ, of the best setting seen.
        met: whether it meets the goal on the validation records, which chose it.
        margin: there, by how much of the records the wanted level leads the best other, in the
            domain where that is least; not above 0 where the goal is not met.
        damage: there, what the fluency guard saw.
        obstacles: where the goal is not met, what stands in the way.
        tests: domain → what was measured on the test records; empty where they were not scored.
        test_damage: what the guard saw of the answers to test queries; None without.
    """

    goal: dict[str, str]
    lambdas: dict[str, float]
    met: bool
    margin: float
    damage: float
    obstacles: list[str] = field(default_factory=list)
    tests: dict[str, Result] = field(default_factory=dict)
    test_damage: float | None = None

    @property
    def wanted(self) -> str:
        """The goal as it is typed."""
        return " ".join(f"{domain}={level}" for domain, level in self.goal.items())

    @property
    def holds(self) -> bool:
        """Whether every wanted level is dominant on the test records as well."""
        return bool(self.tests) and all(
            self.tests[domain].dominant == level for domain, level in self.goal.items()
        )

    @property
    def test_margin(self) -> float:
        """As `margin`, on the test records.

        Raises:
            KeyError: they were not scored.
        """
        return min(share_margin(self.tests[domain], level) for domain, level in self.goal.items())


def share_margin(result: Result, level: str) -> float:
    """Return by how much of the records a level leads the best other."""
    others = [share.value for other, share in result.accuracy.items() if other != level]
    return result.accuracy[level].value - max(others)


def best_outcome(question: Question, settings: Sequence[Setting], goal: Goal) -> Outcome:
    """Return the best of the settings that were measured, as yet untested.

    Args:
        settings: one at least.
    """
    measured = Landscape.seen(question, settings)
    best = int(measured.value(question, goal).argmax())
    met = bool(measured.met(question, goal)[best])
    return Outcome(
        goal=dict(goal),
        lambdas=question.setting(settings[best].point),
        met=met,
        margin=float(measured.worst(goal)[best]),
        damage=settings[best].damage,
        obstacles=[] if met else obstacles(question, goal, measured),
    )


def measure_tests(outcomes: Sequence[Outcome], cache: Cache, workload: Workload) -> list[Outcome]:
    """Measure on test records what meets its goal; a single goal's nearest as well.

    Args:
        workload: the test records.

    Returns:
        All outcomes, some of them tested.
    """
    due = [found.met or len(outcomes) == 1 for found in outcomes]
    settings = [found.lambdas for found, is_due in zip(outcomes, due, strict=True) if is_due]
    if workload.queries and settings:
        settings.append({})  # the base, which the guard compares with
    once = {tuple(lambdas.items()): lambdas for lambdas in settings}.values()
    requests = [request for lambdas in once for request in workload.requests(lambdas)]
    kept = sum(request in cache for request in requests)
    with tqdm(total=len(requests), initial=kept, desc="Testing", unit="evaluation") as bar:
        for _ in cache.measure(requests):
            bar.update()
    return [
        _tested(found, cache, workload) if is_due else found
        for found, is_due in zip(outcomes, due, strict=True)
    ]


def _tested(found: Outcome, cache: Cache, workload: Workload) -> Outcome:
    """Return the same, with what its setting does on the test records."""
    results = {task.name: cache.result(found.lambdas, task) for task in workload.scored}
    damage = workload.damage(cache, found.lambdas) if workload.queries else None
    return replace(found, tests=results, test_damage=damage)
