"""The search: settings are measured as a strategy chooses them, until it has no more to ask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from mergekit_av.evaluation.fluency import Fluency, fluency
from mergekit_av.evaluation.measure.cache import Evaluator
from mergekit_av.evaluation.measure.requests import Job
from mergekit_av.evaluation.tasks import Task
from mergekit_av.models.decoding import Decoding

from .landscape import Landscape, Setting
from .problem import Goal, Point, Question
from .strategies import Strategy


@dataclass(frozen=True)
class Records:
    """What is measured at a setting.

    Attributes:
        scored: the records whose responses are scored, a task a domain.
        written: the queries that the model answers, for the fluency guard; none for no guard.
        decoding: how they are answered.
    """

    scored: tuple[Task, ...]
    written: tuple[Task, ...] = ()
    decoding: Decoding = field(default_factory=Decoding)

    def jobs(self, lambdas: Mapping[str, float]) -> list[Job]:
        scored = [Job(lambdas, task) for task in self.scored]
        return scored + [Job(lambdas, task, self.decoding) for task in self.written]

    def fluency(self, evaluator: Evaluator, lambdas: Mapping[str, float]) -> list[Fluency]:
        """What the guard sees at a setting, in the domain of each task of answers."""
        return [
            fluency(
                evaluator.written(lambdas, task, self.decoding),
                [evaluator.result(lambdas, some) for some in self.scored if some.name == task.name],
            )
            for task in self.written
        ]

    def damage(self, evaluator: Evaluator, lambdas: Mapping[str, float]) -> float:
        """In the domain that has suffered most (`Fluency.damage`); 0 without a guard."""
        pairs = zip(self.fluency(evaluator, lambdas), self.fluency(evaluator, {}), strict=True)
        return max((seen.damage(base) for seen, base in pairs), default=0.0)


class Search:
    """Measures settings until the strategy has no more to ask or the budget is spent.

    Args:
        records: those that goals are looked for on, of the validation split.
        budget: settings, whether measured now or read from the store: so a search that is resumed
            comes to the same end.

    Attributes:
        settings: what was measured, in order. Where the search is interrupted, all that there was.
    """

    def __init__(
        self, evaluator: Evaluator, question: Question, goals: Sequence[Goal], strategy: Strategy,
        records: Records, budget: int,
    ):  # fmt: skip
        self.evaluator, self.question, self.goals = evaluator, question, goals
        self.strategy, self.records, self.budget = strategy, records, budget
        self.settings: list[Setting] = []

    def run(self) -> None:
        with tqdm(total=self.budget, desc="Searching", unit="setting") as bar:
            while points := self._next():
                try:
                    self._measure(points, bar)
                finally:
                    # Interrupted, whatever is measured whole counts: a grid is a single batch.
                    for point in points:
                        if self._is_whole(point):
                            self.settings.append(self._setting(point))
                bar.set_postfix_str(self._standing())

    def seen(self) -> Landscape:
        """All that was measured."""
        return Landscape.seen(self.question, self.settings)

    @property
    def seconds(self) -> float:
        """What the settings cost, whenever they were measured; in one process after another."""
        jobs = (job for setting in self.settings for job in self._jobs(setting.point))
        return sum(map(self.evaluator.seconds, jobs))

    def _next(self) -> list[Point]:
        left = self.budget - len(self.settings)
        return self.strategy.next(self.settings)[:left] if left else []

    def _measure(self, points: Sequence[Point], bar: tqdm) -> None:
        # The base first, which the guard compares everything with.
        ordered = sorted(points, key=any)
        missing = {
            point: [job for job in self._jobs(point) if not self.evaluator.holds(job)]
            for point in ordered
        }
        base = [] if not all(map(any, ordered)) else self._base()
        kept = sum(not jobs for jobs in missing.values())
        # What was kept takes no time: the time that is left is that of the others.
        bar.initial += kept
        bar.update(kept)
        for _ in self.evaluator.measure(base):
            pass
        left = {point: len(jobs) for point, jobs in missing.items()}
        for job in self.evaluator.measure([job for jobs in missing.values() for job in jobs]):
            point = tuple(job.lambdas.values())
            left[point] -= 1
            bar.update(left[point] == 0)

    def _is_whole(self, point: Point) -> bool:
        """Whether all that is to be known of a setting is in the store."""
        return all(map(self.evaluator.holds, [*self._jobs(point), *self._base()]))

    def _base(self) -> list[Job]:
        """What the guard compares with; nothing without a guard."""
        return self.records.jobs({}) if self.records.written else []

    def _setting(self, point: Point) -> Setting:
        lambdas = self.question.setting(point)
        scores = {}
        for task in self.records.scored:
            result = self.evaluator.result(lambdas, task)
            scores[task.name] = np.array([list(row.values()) for row in result.scores.values()])
        return Setting(point, scores, self.records.damage(self.evaluator, lambdas))

    def _jobs(self, point: Point) -> list[Job]:
        return self.records.jobs(self.question.setting(point))

    def _standing(self) -> str:
        seen = self.seen()
        met = sum(bool(seen.met(self.question, goal).any()) for goal in self.goals)
        return f"{met} of {len(self.goals)} met"
