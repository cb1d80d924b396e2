"""The question a search answers: which coefficients bring out the wanted level in every domain?

Among the points of a lattice, those count at which every wanted level is dominant while the
language holds; the best of them has the largest worst margin. A share of a few records moves in
steps too coarse to be led by, so margins are smoothed: each record's vote is spread over its levels
by a softmax of their mean log-probabilities.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

import numpy as np
from scipy.special import softmax

from mergekit_av.errors import AVError
from mergekit_av.votes import votes

# Coefficients, one a vector.
Point = tuple[float, ...]
# Domain → the level that is wanted there.
Goal = Mapping[str, str]

# λ of one vector, and points of a lattice.
MOST, MOST_POINTS = 10_000, 5_000_000
# Nats per token in which a record's vote is undecided. Two levels that far apart share it 27 : 73.
TEMPERATURE = 0.2
# What a smoothed margin loses for each unit of |λ|, mean over the vectors: of near equals the smaller
# change wins, which harms the language less.
CHANGE = 0.05


@dataclass(frozen=True)
class Question:
    """Where coefficients are looked for, and what is asked of them.

    Attributes:
        axes: vector → the λ it may have, rising.
        levels: domain → its levels, best first.
        tolerance: how much of what the fluency guard allows may be used (`Fluency.damage`).
    """

    axes: dict[str, tuple[float, ...]]
    levels: dict[str, tuple[str, ...]]
    tolerance: float = 1.0

    @property
    def size(self) -> int:
        """Points of the lattice."""
        return math.prod(map(len, self.axes.values()))

    def lattice(self) -> list[Point]:
        """All points.

        Raises:
            AVError: there are more than memory holds.
        """
        if self.size > MOST_POINTS:
            raise AVError(f"there are {self.size:,} settings: take a larger step or smaller ranges")
        return list(itertools.product(*self.axes.values()))

    def setting(self, point: Point) -> dict[str, float]:
        """Vector → λ."""
        return dict(zip(self.axes, point, strict=True))


def axis(low: float | str, high: float | str, step: float | str) -> tuple[float, ...]:
    """The multiples of `step` from `low` to `high`, as the decimals one would write.

    Raises:
        AVError: there are none, or the step is not positive.
    """
    lowest, highest, width = (Decimal(str(value)) for value in (low, high, step))
    if width <= 0:
        raise AVError(f"the step {step} must be positive")
    try:
        first = (lowest / width).to_integral_value(ROUND_CEILING)
        last = (highest / width).to_integral_value(ROUND_FLOOR)
        count = last - first
    except ArithmeticError:  # beyond what a Decimal holds
        count = Decimal("inf")
    if count >= MOST:
        raise AVError(f"there are {count:,.0f} multiples of {step}: take a larger step")
    if first > last:
        raise AVError(f"no multiple of {step} lies from {low} to {high}")
    # + 0.0 makes -0.0 a 0.
    return tuple(float(i * width) + 0.0 for i in range(int(first), int(last) + 1))


def combinations(levels: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every way to want a level in each domain."""
    return [
        dict(zip(levels, chosen, strict=True)) for chosen in itertools.product(*levels.values())
    ]


@dataclass(frozen=True)
class Setting:
    """What was measured at a point.

    Attributes:
        scores: domain → mean log-probabilities of the validation records, (records, levels), nats
            per token.
        damage: what the fluency guard saw (`Fluency.damage`); 0 where it was not asked.
    """

    point: Point
    scores: dict[str, np.ndarray]
    damage: float = 0.0


@dataclass(frozen=True)
class Landscape:
    """What was measured, or is predicted, at many points at once.

    Attributes:
        points: (points, vectors).
        margins: (domain, level) → (points,): by how much of the records the level leads the best
            other; above 0 it is dominant.
        smooth: the same, smoothed.
        damage: (points,).
    """

    points: np.ndarray
    margins: dict[tuple[str, str], np.ndarray]
    smooth: dict[tuple[str, str], np.ndarray]
    damage: np.ndarray

    @classmethod
    def of(
        cls, question: Question, points: np.ndarray, scores: Mapping[str, np.ndarray],
        damage: np.ndarray,
    ) -> "Landscape":  # fmt: skip
        """From scores of the shape (points, records, levels)."""
        margins, smooth = {}, {}
        for domain, levels in question.levels.items():
            values = scores[domain]
            hard = votes(values) / values.shape[-2]
            soft = softmax(values / TEMPERATURE, axis=-1).mean(axis=-2)
            for found, shares in ((margins, hard), (smooth, soft)):
                for number, level in enumerate(levels):
                    best_other = np.delete(shares, number, axis=-1).max(axis=-1)
                    found[domain, level] = shares[..., number] - best_other
        return cls(points, margins, smooth, damage)

    @classmethod
    def seen(cls, question: Question, settings: Sequence[Setting]) -> "Landscape":
        """What was measured."""
        return cls.of(
            question,
            np.array([setting.point for setting in settings], dtype=float),
            {
                domain: np.stack([setting.scores[domain] for setting in settings])
                for domain in question.levels
            },
            np.array([setting.damage for setting in settings]),
        )

    def worst(self, goal: Goal, smooth: bool = False) -> np.ndarray:
        """(points,): the smallest margin among those of the wanted levels."""
        found = self.smooth if smooth else self.margins
        return np.min([found[wanted] for wanted in goal.items()], axis=0)

    def met(self, question: Question, goal: Goal) -> np.ndarray:
        """(points,): whether every wanted level is dominant while the language holds."""
        return (self.worst(goal) > 0) & (self.damage <= question.tolerance)

    def value(self, question: Question, goal: Goal) -> np.ndarray:
        """(points,): how good an answer each point is, for comparing them.

        The smoothed margin less the change; 3 more where the goal is met; and where the language is
        broken less than any of these, the more so the more it is broken.
        """
        smooth = self.worst(goal, smooth=True) - CHANGE * np.abs(self.points).mean(axis=1)
        inside = self.damage <= question.tolerance
        dominant = self.worst(goal) > 0
        return np.where(inside, smooth + 3 * dominant, -3 - np.maximum(self.damage, 0))


def obstacles(question: Question, goal: Goal, seen: Landscape) -> list[str]:
    """What stands in the way of a goal that nothing seen meets, a sentence each.

    The wanted levels that are dominant nowhere; else the pairs that are never dominant together.
    """
    tried = len(seen.points)
    kept = seen.damage <= question.tolerance
    if not kept.any():
        return [f"the language is broken at each of the {tried} settings tried"]
    where = " where the language holds" if not kept.all() else ""
    dominant = {wanted: (seen.margins[wanted] > 0) & kept for wanted in goal.items()}
    alone = [
        f"{level} is dominant in {domain} at none of the {tried} settings tried{where}"
        for (domain, level), found in dominant.items()
        if not found.any()
    ]
    if alone:
        return alone
    together = [
        f"{one[0]} {one[1]} and {other[0]} {other[1]} are dominant at some settings each, "
        f"together at none of the {tried} tried{where}"
        for one, other in itertools.combinations(dominant, 2)
        if not (dominant[one] & dominant[other]).any()
    ]
    return together or [
        f"any two of the wishes are met at some setting, all at none of the {tried} tried{where}"
    ]
