"""The problem of a search: which coefficients bring out the wanted level in every domain?

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

from mergekit_av.errors import AVError, UsageError

# Coefficients, one a vector.
Point = tuple[float, ...]
# A coefficient as it may be typed.
Number = Decimal | float | str
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
        """Return all points.

        Raises:
            AVError: there are more than memory holds.
        """
        if self.size > MOST_POINTS:
            raise AVError(f"there are {self.size:,} settings: take a larger step or smaller ranges")
        return list(itertools.product(*self.axes.values()))

    def setting(self, point: Point) -> dict[str, float]:
        """Return vector → λ at a point."""
        return dict(zip(self.axes, point, strict=True))


def axis(low: Number, high: Number, step: Number) -> tuple[float, ...]:
    """Return the multiples of `step` from `low` to `high`, as the decimals one would write.

    Raises:
        UsageError: there are none, or the step is not positive.
    """
    lowest, highest, width = (Decimal(str(value)) for value in (low, high, step))
    if width <= 0:
        raise UsageError(f"the step {step} must be positive")
    try:
        first = (lowest / width).to_integral_value(ROUND_CEILING)
        last = (highest / width).to_integral_value(ROUND_FLOOR)
        count = last - first
    except ArithmeticError:  # beyond what a Decimal holds
        count = Decimal("inf")
    if count >= MOST:
        raise UsageError(f"there are {count:,.0f} multiples of {step}: take a larger step")
    if first > last:
        raise UsageError(f"no multiple of {step} lies from {low} to {high}")
    # + 0.0 makes -0.0 a 0.
    return tuple(float(i * width) + 0.0 for i in range(int(first), int(last) + 1))


def combinations(levels: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Return every way to want a level in each domain."""
    return [
        dict(zip(levels, chosen, strict=True)) for chosen in itertools.product(*levels.values())
    ]
