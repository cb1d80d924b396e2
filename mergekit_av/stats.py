"""Statistics of preferences: agreement on levels, votes of records, and intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

Confusion = dict[str, dict[str, int]]


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Cohen's κ of two sequences of labels of the same items: 1 is full agreement, 0 what chance
    gives; None where it is not defined, because there are no items or all labels are the same."""
    from sklearn.metrics import cohen_kappa_score

    if len({*one, *other}) < 2:
        return None
    return float(cohen_kappa_score(one, other))


def confusion(known: Sequence[str], chosen: Sequence[str], levels: Sequence[str]) -> Confusion:
    """Known level → chosen level → number of items (the paper's table 7, in counts)."""
    from sklearn.metrics import confusion_matrix

    if not known:
        return {level: dict.fromkeys(levels, 0) for level in levels}
    counts = confusion_matrix(known, chosen, labels=list(levels)).tolist()
    return {
        level: dict(zip(levels, row, strict=True))
        for level, row in zip(levels, counts, strict=True)
    }


def percent(counts: Confusion) -> list[list[str]]:
    """Cells of the matrix in percent of each row, under a head; empty where a row has no items."""
    rows = [["", *counts]]
    for level, chosen in counts.items():
        total = sum(chosen.values())
        rows.append([level, *(f"{100 * n / total:.2f}" if total else "" for n in chosen.values())])
    return rows


def votes(scores: np.ndarray) -> np.ndarray:
    """Count the records that prefer each level: scores (…, records, levels) to counts (…, levels).

    A record whose highest score is at k levels counts 1/k for each of them.
    """
    highest = scores == scores.max(axis=-1, keepdims=True)
    # Whole numbers of this part of a vote: thirds added up as decimals would differ from one another.
    part = math.lcm(*range(1, scores.shape[-1] + 1))
    return (highest * (part // highest.sum(axis=-1, keepdims=True))).sum(axis=-2) / part


CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def wilson(won: float, count: int) -> Estimate:
    """Return the share `won` / `count`, with its Wilson interval (Newcombe 1998, method 3).

    scipy's `binomtest` knows whole numbers only; for these, this is its result bit for bit.
    """
    p, z = won / count, special.ndtri(0.5 + 0.5 * CONFIDENCE)
    denominator = 2 * (count + z**2)
    center = (2 * count * p + z**2) / denominator
    delta = z / denominator * math.sqrt(4 * count * p * (1 - p) + z**2)
    low = 0.0 if won == 0 else float(center - delta)
    high = 1.0 if won == count else float(center + delta)
    return Estimate(p, low, high)


def mean_interval(values: np.ndarray) -> Estimate:
    """Return the mean of float64 values, with Student's t interval; infinite for a single one."""
    mean, count = float(values.mean()), values.size
    if count < 2:
        return Estimate(mean, -math.inf, math.inf)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * float(values.std(ddof=1)) / count**0.5
    return Estimate(mean, mean - half, mean + half)
