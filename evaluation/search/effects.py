"""Effects: what each vector moves, in its own domain and in the others (over-generalisation)."""

from collections.abc import Sequence
from itertools import combinations_with_replacement, pairwise

import numpy as np

from .landscape import Setting
from .problem import Question


def effects(
    question: Question, settings: Sequence[Setting]
) -> dict[tuple[str, str, str], dict[str, float]]:
    """Measure how fast each λ moves one level over the next, about the base.

    The linear terms of a quadratic in the coefficients that is fitted (least squares) to the means
    over the records, at the settings where the language holds.

    Returns:
        (domain, level, next level) → vector → nats per token and unit of λ. Nothing where there are
        fewer such settings than the quadratic has terms; no vector that stayed where it was.
    """
    holding = [setting for setting in settings if setting.damage <= question.tolerance]
    points = np.array([setting.point for setting in holding]).reshape(-1, len(question.axes))
    moving = [axis for axis in range(points.shape[1]) if len(set(points[:, axis])) > 1]
    squares = list(combinations_with_replacement(moving, 2))
    if not moving or len(holding) < 1 + len(moving) + len(squares):
        return {}
    terms = np.column_stack(
        [
            np.ones(len(holding)),
            points[:, moving],
            *(points[:, i] * points[:, j] for i, j in squares),
        ]
    )
    names = [list(question.axes)[axis] for axis in moving]
    found = {}
    for domain, levels in question.levels.items():
        means = np.array([setting.scores[domain].mean(axis=0) for setting in holding])
        slopes = np.linalg.lstsq(terms, means)[0][1 : 1 + len(moving)]
        for better, worse in pairwise(range(len(levels))):
            over = slopes[:, better] - slopes[:, worse]
            found[domain, levels[better], levels[worse]] = dict(
                zip(names, over.tolist(), strict=True)
            )
    return found
