"""Specificity: what a unit of λ moves in a vector's own domain, and what it moves elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mergekit_av.evaluation.accuracy import Result
from mergekit_av.stats import CONFIDENCE, Estimate, mean_interval

# Domain, one of its levels, the next one.
Pair = tuple[str, str, str]
DRAWS = 2000


@dataclass(frozen=True)
class Specificity:
    """What a vector moves between the base and one λ.

    Attributes:
        value: that λ.
        effects: by how much a unit of λ moves one level over the next: nats per token, mean over the
            records, with Student's t interval.
        spill: the largest effect in another domain as a share of the largest in its own; 0 is a vector
            that stays in its domain. Its interval is the middle 95 % of the spills of records drawn
            anew. None where nothing moves in its own domain, or no other was measured.
    """

    value: float
    effects: dict[Pair, Estimate]
    spill: Estimate | None

    def others(self, own: str | None) -> list[str]:
        """Return the domains but the vector's own."""
        return list(dict.fromkeys(domain for domain, _, _ in self.effects if domain != own))


def specificity(
    own: str, value: float, base: Mapping[str, Result], moved: Mapping[str, Result]
) -> Specificity:
    """Compare the results of the base with those at a λ, domain by domain.

    Args:
        own: the vector's domain.
        value: λ, not 0.
        base, moved: domain → its result at 0 and at `value`, on the same records.
    """
    effects: dict[str, dict[Pair, np.ndarray]] = {}
    for domain, result in moved.items():
        ids = [id for id in result.scores if id in base[domain].scores]
        for level, other in pairwise(result.accuracy):
            start, end = (
                np.array([found.scores[id][level] - found.scores[id][other] for id in ids])
                for found in (base[domain], result)
            )
            effects.setdefault(domain, {})[domain, level, other] = (end - start) / value
    of_pairs = {pair: found for pairs in effects.values() for pair, found in pairs.items()}
    return Specificity(
        value,
        {pair: mean_interval(found) for pair, found in of_pairs.items()},
        _with_interval(effects, own),
    )


def spill(effects: Mapping[Pair, float], own: str) -> float | None:
    """Return the largest effect in another domain as a share of the largest in the vector's own; None
    where there is none, or no other domain."""
    largest = {True: 0.0, False: 0.0}
    for (domain, _, _), effect in effects.items():
        largest[domain == own] = max(largest[domain == own], abs(effect))
    elsewhere = any(domain != own for domain, _, _ in effects)
    return largest[False] / largest[True] if largest[True] and elsewhere else None


def _with_interval(effects: Mapping[str, Mapping[Pair, np.ndarray]], own: str) -> Estimate | None:
    """Return the spill of effects of single records, and where it lies when the records of each domain
    are drawn anew, as many as there are (a bootstrap, the same one each time)."""

    def of(draw: Callable[[int], np.ndarray]) -> float | None:
        means: dict[Pair, float] = {}
        for pairs in effects.values():
            rows = draw(len(next(iter(pairs.values()))))
            means |= {pair: float(found[rows].mean()) for pair, found in pairs.items()}
        return spill(means, own)

    value = of(np.arange)
    if value is None:
        return None
    generator = np.random.default_rng(0)
    drawn = [of(lambda count: generator.integers(count, size=count)) for _ in range(DRAWS)]
    found = [each for each in drawn if each is not None]
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))
