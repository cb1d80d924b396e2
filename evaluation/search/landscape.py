"""Measured settings, and the scores that a search sees in them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from mergekit_av.stats import votes

from .problem import CHANGE, TEMPERATURE, Goal, Point, Question


@dataclass(frozen=True)
class Setting:
    """The measurements at a point.

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
    """The scores of many points at once, measured or predicted.

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
        cls,
        question: Question,
        points: np.ndarray,
        scores: Mapping[str, np.ndarray],
        damage: np.ndarray,
    ) -> "Landscape":
        """Score points.

        Args:
            points: (points, vectors).
            scores: domain → mean log-probabilities, (points, records, levels), nats per token.
            damage: (points,).
        """
        margins: dict[tuple[str, str], np.ndarray] = {}
        smooth: dict[tuple[str, str], np.ndarray] = {}
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
        """Score the settings that were measured."""
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
        """Return the smallest margin among those of the wanted levels, (points,)."""
        found = self.smooth if smooth else self.margins
        return np.min([found[wanted] for wanted in goal.items()], axis=0)

    def met(self, question: Question, goal: Goal) -> np.ndarray:
        """Return whether every wanted level is dominant while the language holds, (points,)."""
        return (self.worst(goal) > 0) & (self.damage <= question.tolerance)

    def value(self, question: Question, goal: Goal) -> np.ndarray:
        """Return how good an answer each point is, (points,), for comparing them.

        The smoothed margin less the change; 3 more where the goal is met; and where the language is
        broken less than any of these, the more so the more it is broken.
        """
        smooth = self.worst(goal, smooth=True) - CHANGE * np.abs(self.points).mean(axis=1)
        inside = self.damage <= question.tolerance
        dominant = self.worst(goal) > 0
        return np.where(inside, smooth + 3 * dominant, -3 - np.maximum(self.damage, 0))


def obstacles(question: Question, goal: Goal, seen: Landscape) -> list[str]:
    """Return what stands in the way of a goal that nothing seen meets, a sentence each.

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
