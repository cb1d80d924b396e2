"""Statistics of preferences: agreement on levels, votes of records, and intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

Confusion = dict[str, dict[str, int]]


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Return Cohen's κ of two sequences of labels of the same items: 1 is full agreement, 0 what
    chance gives; None where it is not defined: there are no items, or all labels are the same."""
    labels = sorted({*one, *other})
    if len(labels) < 2:
        return None
    counts = np.array([[*row.values()] for row in confusion(one, other, labels).values()])
    by_chance = np.outer(counts.sum(axis=0), counts.sum(axis=1)) / counts.sum()
    differ = 1.0 - np.eye(len(labels))
    return float(1 - (differ * counts).sum() / (differ * by_chance).sum())


def confusion(known: Sequence[str], chosen: Sequence[str], levels: Sequence[str]) -> Confusion:
    """Count known level → chosen level → items (the paper's table 7, in counts)."""
    counts = {level: dict.fromkeys(levels, 0) for level in levels}
    for level, other in zip(known, chosen, strict=True):
        counts[level][other] += 1
    return counts


def percent(counts: Confusion) -> list[list[str]]:
    """Return the cells of the matrix in percent of each row, under a head; empty where a row has no items."""
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
    """Hold a value with its 95 % confidence interval."""

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
