"""What a search found for a goal: the best setting, and what it does on records it was not chosen on."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mergekit_av.evaluation.accuracy import Result
from mergekit_av.evaluation.measure.cache import Evaluator

from .landscape import obstacles
from .problem import Goal
from .search import Records, Search


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
    """By how much of the records a level leads the best other."""
    others = [share.value for other, share in result.accuracy.items() if other != level]
    return result.accuracy[level].value - max(others)


def outcome(search: Search, goal: Goal) -> Outcome:
    """The best of what a search has seen, as yet untested.

    Raises:
        ValueError: it has seen nothing.
    """
    question, seen = search.question, search.seen()
    best = int(seen.value(question, goal).argmax())
    setting, met = search.settings[best], bool(seen.met(question, goal)[best])
    return Outcome(
        goal=dict(goal),
        lambdas=question.setting(setting.point),
        met=met,
        margin=float(seen.worst(goal)[best]),
        damage=setting.damage,
        obstacles=[] if met else obstacles(question, goal, seen),
    )


def tested(found: Outcome, evaluator: Evaluator, records: Records) -> Outcome:
    """The same, with what its setting does on the test records."""
    results = {task.name: evaluator.result(found.lambdas, task) for task in records.scored}
    damage = records.damage(evaluator, found.lambdas) if records.written else None
    return replace(found, tests=results, test_damage=damage)


def count(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """How many goals are met on the validation records, and how many of these on the test records."""
    met = [found for found in outcomes if found.met]
    return len(met), sum(found.holds for found in met)
