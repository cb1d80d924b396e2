"""The search: it measures settings as a strategy chooses them, until it has no more to ask."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from mergekit_av.evaluation.measure.cache import Cache
from mergekit_av.evaluation.measure.requests import Request

from .landscape import Landscape, Setting
from .problem import Goal, Point, Question
from .strategies import Strategy
from .workload import Workload


class Search:
    """Measure settings until the strategy has no more to ask or the budget is spent.

    Args:
        workload: the records that goals are looked for on, of the validation split.
        budget: settings, whether measured now or read from the store: so a search that is resumed
            comes to the same end.

    Attributes:
        settings: what was measured, in order. Where the search is interrupted, all that there was.
    """

    def __init__(
        self,
        cache: Cache,
        question: Question,
        goals: Sequence[Goal],
        strategy: Strategy,
        workload: Workload,
        budget: int,
    ):
        self.cache, self.question, self.goals = cache, question, goals
        self.strategy, self.workload, self.budget = strategy, workload, budget
        self.settings: list[Setting] = []

    def run(self) -> None:
        """Measure settings.

        Raises:
            AVError: a measurement failed, or could not be kept.
        """
        with tqdm(total=self.budget, desc="Searching", unit="setting") as bar:
            while points := self._next():
                try:
                    self._measure(points, bar)
                finally:
                    # Interrupted, whatever is measured whole counts: a grid is a single batch.
                    for point in points:
                        if self._is_whole(point):
                            self.settings.append(self._setting(point))
                bar.set_postfix_str(self._goals_met())

    @property
    def seconds(self) -> float:
        """What the settings cost, whenever they were measured; in one process after another."""
        requests = (one for setting in self.settings for one in self._requests(setting.point))
        return sum(map(self.cache.seconds, requests))

    def _next(self) -> list[Point]:
        left = self.budget - len(self.settings)
        return self.strategy.next(self.settings)[:left] if left else []

    def _measure(self, points: Sequence[Point], bar: tqdm) -> None:
        # The base first, which the guard compares everything with.
        ordered = sorted(points, key=any)
        missing = {
            point: [request for request in self._requests(point) if request not in self.cache]
            for point in ordered
        }
        base = [] if not all(map(any, ordered)) else self._base()
        kept = sum(not requests for requests in missing.values())
        # What was kept takes no time: the time that is left is that of the others.
        bar.initial += kept
        bar.update(kept)
        for _ in self.cache.measure(base):
            pass
        left = {point: len(requests) for point, requests in missing.items()}
        every = [request for requests in missing.values() for request in requests]
        for request in self.cache.measure(every):
            point = tuple(request.lambdas.values())
            left[point] -= 1
            bar.update(left[point] == 0)

    def _is_whole(self, point: Point) -> bool:
        """Return whether all that is to be known of a setting is in the store."""
        return all(request in self.cache for request in [*self._requests(point), *self._base()])

    def _base(self) -> list[Request]:
        """Return what the guard compares with; nothing without a guard."""
        return self.workload.requests({}) if self.workload.queries else []

    def _setting(self, point: Point) -> Setting:
        lambdas = self.question.setting(point)
        scores = {}
        for task in self.workload.scored:
            result = self.cache.result(lambdas, task)
            scores[task.name] = np.array([list(row.values()) for row in result.scores.values()])
        return Setting(point, scores, self.workload.damage(self.cache, lambdas))

    def _requests(self, point: Point) -> list[Request]:
        return self.workload.requests(self.question.setting(point))

    def _goals_met(self) -> str:
        measured = Landscape.seen(self.question, self.settings)
        met = sum(bool(measured.met(self.question, goal).any()) for goal in self.goals)
        return f"{met} of {len(self.goals)} met"
