"""Lengths of responses, and whether they give the level away."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, rankdata, spearmanr

from mergekit_av.errors import AVError

# A balanced subset smaller than this share of the records is not worth its name: few records differ
# in anything only by chance.
MIN_SHARE = 0.25
# So many of a large set are dropped in one step of its balancing.
STEP = 1 / 200


@dataclass(frozen=True)
class Test:
    """Hold a test of the hypothesis that lengths are the same at every level.

    Attributes:
        statistic: about χ² distributed, with number of levels − 1 degrees of freedom.
        p: of a statistic at least so high by chance.
        effect: 0 where the level says nothing of the length, 1 where it says all.
    """

    statistic: float
    p: float
    effect: float


@dataclass(frozen=True)
class Lengths:
    """Describe lengths in words, by level.

    Attributes:
        records: how many.
        mean: level → mean words of its responses.
        longest: level → share of the records whose longest response is at it; a tie counts for
            each of the tied by its part.
        kruskal_wallis: over all responses; its effect is ε², which less than 0.06 makes small.
        friedman: among the responses of each record; its effect is Kendall's W.
        rho: Spearman's correlation of length with the level's rank, best first: negative where
            better levels are longer.
    """

    records: int
    mean: dict[str, float]
    longest: dict[str, float]
    kruskal_wallis: Test
    friedman: Test
    rho: float

    @property
    def tells(self) -> bool:
        """Tell whether either test says that the level can be told from the length (p < 0.05)."""
        return min(self.kruskal_wallis.p, self.friedman.p) < 0.05


def measure(words: np.ndarray, levels: Sequence[str]) -> Lengths:
    """Measure what lengths of shape (records, levels), in words, say of the level.

    Raises:
        AVError: there are no records.
    """
    count, width = words.shape
    if not count:
        raise AVError("no record is left whose lengths could be compared")
    top = words == words.max(axis=1, keepdims=True)
    longest = (top / top.sum(axis=1, keepdims=True)).mean(axis=0)
    overall, within = _over_all(words), _within(words)
    rho = 0.0
    if np.ptp(words):  # a correlation with a constant does not exist
        rho = spearmanr(np.tile(np.arange(width), count), words.ravel()).statistic
    return Lengths(
        records=count,
        mean=dict(zip(levels, words.mean(axis=0).tolist(), strict=True)),
        longest=dict(zip(levels, longest.tolist(), strict=True)),
        kruskal_wallis=_test(overall, width, most=count * width - 1),
        friedman=_test(within, width, most=count * (width - 1)),
        rho=float(rho),
    )


def balance(words: np.ndarray) -> np.ndarray:
    """Return the positions of those records, most of them, in which the level says no more of the length than
    chance would: both tests' statistics are at their expectation, number of levels − 1, or below.

    The records that add most to the statistics go first, until that holds. The tests see where the
    lengths of a level lie, not how they spread.

    Args:
        words: lengths of shape (records, levels).

    Raises:
        AVError: too few records would be left.
    """
    kept, width = np.arange(len(words)), words.shape[1]
    while len(kept) >= max(2, MIN_SHARE * len(words)):
        some = words[kept]
        parts = _over_all(some), _within(some)
        if max(_statistic(*part) for part in parts) <= width - 1:
            return kept
        without = sum(
            scale * ((deviations.sum(axis=0) - deviations) ** 2).sum(axis=1)
            for deviations, scale in parts
        )
        kept = np.delete(kept, without.argsort()[: max(1, int(STEP * len(kept)))])
    raise AVError(
        f"the lengths follow the level in too many of the {len(words)} records to balance them: make "
        "the responses anew, with lengths drawn alike for all levels"
    )


def _over_all(words: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the deviations of all responses' ranks from their mean, and what makes the Kruskal–Wallis
    statistic, corrected for ties, of the squares of the levels' sums."""
    deviations = rankdata(words).reshape(words.shape) - (words.size + 1) / 2
    return deviations, (words.size - 1) / max(1e-9, (deviations**2).sum()) / len(words)


def _within(words: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the same for the ranks within each record, and Friedman's statistic."""
    deviations = rankdata(words, axis=1) - (words.shape[1] + 1) / 2
    return deviations, (words.shape[1] - 1) / max(1e-9, (deviations**2).sum())


def _statistic(deviations: np.ndarray, scale: float) -> float:
    return float(scale * (deviations.sum(axis=0) ** 2).sum())


def _test(part: tuple[np.ndarray, float], width: int, most: int) -> Test:
    statistic = _statistic(*part)
    return Test(statistic, float(chi2.sf(statistic, width - 1)), statistic / max(1, most))
