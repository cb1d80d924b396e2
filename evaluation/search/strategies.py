"""Strategies: how a search chooses the settings to measure, from all that was seen so far.

A strategy knows nothing of models, stores or processes, and has no state: asked again with the same
settings it gives the same answer, so that an interrupted search goes on as if nothing had been.
"""

from collections.abc import Sequence
from itertools import product
from typing import Protocol

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import qmc

from mergekit_av.errors import AVError

from .landscape import Landscape, Setting
from .problem import Goal, Point, Question
from .surfaces import Surfaces

# More points than this are not listed; of a larger lattice, surfaces are looked at in a sample.
MOST, SAMPLE = 1 << 17, 1 << 15
# Settings that are measured before what was learnt of them chooses the next ones.
BATCH = 4
# Whether its goal is met already, the margin it misses 0 by, and a point: the smallest comes first.
Promise = tuple[bool, float, Point]


class Strategy(Protocol):
    """Choose settings.

    Attributes:
        minimum: settings without which it can say nothing.
    """

    minimum: int

    def __init__(self, question: Question, goals: Sequence[Goal]): ...

    def next(self, seen: Sequence[Setting]) -> list[Point]:
        """Return the settings to measure next, best first; none where more would not help."""
        ...


class Grid:
    """Measure every point of the lattice, as the paper does."""

    def __init__(self, question: Question, goals: Sequence[Goal]):
        self.question, self.minimum = question, question.size
        _check_listable(question)

    def next(self, seen: Sequence[Setting]) -> list[Point]:
        known = {setting.point for setting in seen}
        # The smallest changes first: a grid that is stopped has seen what matters most.
        points = sorted(self.question.lattice(), key=lambda point: sum(map(abs, point)))
        return [point for point in points if point not in known]


class Hierarchical:
    """Go from coarse to fine, as the paper suggests: a coarse grid, then ever finer ones around the
    best point of each goal."""

    COARSE = 4  # points an axis, and its end

    def __init__(self, question: Question, goals: Sequence[Goal]):
        self.question, self.goals = question, goals
        self._axes = list(question.axes.values())
        longest = max(map(len, self._axes))
        # In steps of the lattice, a power of two, so that halves are on it too.
        self._stride = 1
        while (longest - 1) // self._stride >= self.COARSE:
            self._stride *= 2
        coarse = [
            sorted({*range(0, len(axis), self._stride), len(axis) - 1}) for axis in self._axes
        ]
        self._coarse = list(product(*coarse))
        self.minimum = len(self._coarse)

    def next(self, seen: Sequence[Setting]) -> list[Point]:
        known = {setting.point: setting for setting in seen}
        wanted, stride = [self._point(index) for index in self._coarse], self._stride
        while all(point in known for point in wanted):
            if stride == 1:
                return []
            stride //= 2
            considered = [known[point] for point in wanted]
            landscape = Landscape.seen(self.question, considered)
            for goal in self.goals:
                best = considered[int(landscape.value(self.question, goal).argmax())]
                wanted += [p for p in self._around(best.point, stride) if p not in wanted]
        return [point for point in wanted if point not in known]

    def _around(self, point: Point, stride: int) -> list[Point]:
        index = [axis.index(value) for axis, value in zip(self._axes, point, strict=True)]
        near = [
            [i + step for step in (-stride, 0, stride) if 0 <= i + step < len(axis)]
            for i, axis in zip(index, self._axes, strict=True)
        ]
        return [self._point(found) for found in product(*near)]

    def _point(self, index: Sequence[int]) -> Point:
        return tuple(axis[i] for i, axis in zip(index, self._axes, strict=True))


class Surface:
    """Search on surfaces fitted to what was measured (`surfaces`).

    All points of the lattice are solved on them for all goals at once, the most promising are
    measured, the surfaces fitted again, until what they promise is what was seen.
    """

    # What a point must promise to gain, in smoothed margin, to be worth a measurement.
    GAIN = 0.02
    # A goal that nothing meets is given up where so many times their error leaves it out of reach.
    DOUBT = 2.0
    # λ between what was measured and what is measured for lack of a promise.
    APART = 0.3

    def __init__(self, question: Question, goals: Sequence[Goal]):
        self.question, self.goals = question, goals
        self._axes = [np.array(axis) for axis in question.axes.values()]
        self.minimum = min(self._design_size(), question.size)

    def next(self, seen: Sequence[Setting]) -> list[Point]:
        known = {setting.point for setting in seen}
        missing = [point for point in self._design() if point not in known]
        if missing:
            return missing
        points = self._candidates(seen)
        points = points[[tuple(point) not in known for point in points.tolist()]]
        if not len(points):
            return []
        surfaces = Surfaces(self.question, seen)
        predicted, measured = surfaces.landscape(points), Landscape.seen(self.question, seen)
        found = [self._promise(goal, predicted, measured) for goal in self.goals]
        if not any(found):
            left_out = surfaces.left_out()
            far = cdist(points, measured.points).min(axis=1) >= self.APART
            found = [self._chance(goal, predicted, measured, left_out, far) for goal in self.goals]
        best = sorted(promise for promise in found if promise is not None)
        return list(dict.fromkeys(point for *_, point in best))[:BATCH]

    def _promise(self, goal: Goal, predicted: Landscape, measured: Landscape) -> Promise | None:
        """Return the best predicted point; None if it is no better than what was seen."""
        values = predicted.value(self.question, goal)
        reached = measured.value(self.question, goal).max()
        if values.max() <= reached + self.GAIN:
            return None
        met = bool(measured.met(self.question, goal).any())
        return met, -values.max(), tuple(predicted.points[values.argmax()].tolist())

    def _chance(
        self,
        goal: Goal,
        predicted: Landscape,
        measured: Landscape,
        left_out: Landscape,
        far: np.ndarray,
    ) -> Promise | None:
        """Return for a goal that nothing meets the point, away from all that was measured, that misses
        it by least; None if even the surfaces' error leaves it out of reach."""
        inside = far & (predicted.damage <= self.question.tolerance)
        if measured.met(self.question, goal).any() or not inside.any():
            return None
        errors = left_out.worst(goal, smooth=True) - measured.worst(goal, smooth=True)
        margins = np.where(inside, predicted.worst(goal, smooth=True), -np.inf)
        if margins.max() + self.DOUBT * np.sqrt(np.square(errors).mean()) <= 0:
            return None
        return False, -margins.max(), tuple(predicted.points[margins.argmax()].tolist())

    def _design_size(self) -> int:
        """Return three times what a quadratic surface has coefficients."""
        vectors = len(self._axes)
        return 3 * (vectors + 1) * (vectors + 2) // 2

    def _design(self) -> list[Point]:
        """Return points that fill the box, denser around 0, and 0 itself or what is nearest to it."""
        if self.question.size <= self._design_size():
            return self.question.lattice()
        design = dict.fromkeys([self._nearest(np.zeros(len(self._axes)))])
        sequence = qmc.Sobol(len(self._axes), rng=0)
        while len(design) < self._design_size():
            [unit] = sequence.random(1)
            design[self._nearest(self._spread(unit[None])[0])] = None
        return list(design)

    def _spread(self, units: np.ndarray) -> np.ndarray:
        """Turn (points, vectors) of numbers from 0 to 1 into coefficients: half of them within .35 of
        the way from 0 to an end."""
        low, high = (np.array([axis[end] for axis in self._axes]) for end in (0, -1))
        start, values = np.clip(0.0, low, high), 2 * units - 1
        return start + np.abs(values) ** 1.5 * (np.where(values > 0, high, low) - start)

    def _candidates(self, seen: Sequence[Setting]) -> np.ndarray:
        """Return all points of the lattice; of one too large to list, some everywhere and as many
        around the best points seen."""
        if self.question.size <= MOST:
            return np.array(self.question.lattice())
        # Others each time, and the same ones again in a search that is resumed.
        rng = np.random.default_rng(len(seen))
        landscape = Landscape.seen(self.question, seen)
        best = {int(landscape.value(self.question, goal).argmax()) for goal in self.goals}
        everywhere = self._spread(qmc.Sobol(len(self._axes), rng=rng).random(SAMPLE))
        centres = landscape.points[rng.choice(sorted(best), SAMPLE)]
        near = centres + rng.normal(0, 0.2, centres.shape)
        return np.unique(self._snap(np.concatenate([everywhere, near])), axis=0)

    def _nearest(self, values: np.ndarray) -> Point:
        return tuple(self._snap(values[None])[0].tolist())

    def _snap(self, values: np.ndarray) -> np.ndarray:
        """Return the nearest points of the lattice, (points, vectors)."""
        columns = [
            axis[np.abs(axis[:, None] - column).argmin(axis=0)]
            for axis, column in zip(self._axes, values.T, strict=True)
        ]
        return np.stack(columns, axis=1)


def _check_listable(question: Question) -> None:
    """Raise AVError for more points than are listed."""
    if question.size > MOST:
        raise AVError(
            f"the grid has {question.size:,} settings: take a larger step, a smaller range, or "
            "the strategy `surface`"
        )


STRATEGIES: dict[str, type[Strategy]] = {
    "surface": Surface,
    "hierarchical": Hierarchical,
    "grid": Grid,
}
