"""Surfaces: predictions at any point from what was measured at some.

Every record's mean log-probability at every level is a smooth function of the coefficients. Each is
interpolated by thin-plate splines, all of them at once; what is measured comes back exactly. Far
from 0 log-probabilities fall ever faster, so what is interpolated is the logarithm of their negative,
which bends less.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.interpolate import RBFInterpolator

from .landscape import Landscape, Setting
from .problem import Question

# Beyond this much damage it does not matter how much more: a broken model must not tilt the surface
# where the language holds.
BROKEN = 3.0
# Nats per token below which a response is as good as certain.
CERTAIN = 1e-6


class Surfaces:
    """Fit surfaces to settings, one at least."""

    def __init__(self, question: Question, settings: Sequence[Setting]):
        self.question = question
        self._shapes = {domain: settings[0].scores[domain].shape for domain in question.levels}
        self._points = np.array([setting.point for setting in settings], dtype=float)
        self._values = np.array([self._row(setting) for setting in settings])
        self._surface = _fit(self._points, self._values)

    def landscape(self, points: np.ndarray) -> Landscape:
        """Predict the landscape at points, (points, vectors)."""
        rows = self._surface(points)
        return Landscape.of(self.question, points, self._split(rows), rows[:, -1])

    def scores(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Predict domain → mean log-probabilities at points, (points, records, levels)."""
        return self._split(self._surface(points))

    def left_out(self) -> Landscape:
        """Predict the landscape at each measured point from all others."""
        rows = self._left_out()
        return Landscape.of(self.question, self._points, self._split(rows), rows[:, -1])

    def error(self) -> float:
        """Return how far `left_out` is from what was measured: root mean square of the mean
        log-probabilities, nats per token."""
        predicted, measured = self._split(self._left_out()), self._split(self._values)
        errors = [predicted[domain] - measured[domain] for domain in measured]
        return float(np.sqrt(np.mean(np.square(np.concatenate(errors, axis=None)))))

    def _left_out(self) -> np.ndarray:
        everything = np.arange(len(self._points))
        if len(everything) == 1:
            return self._values
        return np.concatenate(
            [
                _fit(self._points[everything != i], self._values[everything != i])(
                    self._points[i : i + 1]
                )
                for i in everything
            ]
        )

    def _row(self, setting: Setting) -> np.ndarray:
        scores = [setting.scores[domain].ravel() for domain in self.question.levels]
        bent = np.log(np.maximum(-np.concatenate(scores), CERTAIN))
        return np.append(bent, min(setting.damage, BROKEN))

    def _split(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        scores, start = {}, 0
        for domain, (records, levels) in self._shapes.items():
            end = start + records * levels
            scores[domain] = -np.exp(rows[:, start:end]).reshape(-1, records, levels)
            start = end
        return scores


def _fit(points: np.ndarray, values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from points to predicted values."""
    # A coefficient that is the same everywhere says nothing.
    moving = np.ptp(points, axis=0) > 0
    if not moving.any():
        return lambda others: np.repeat(values[:1], len(others), axis=0)
    known = points[:, moving]
    # Around a plane where the points allow one.
    planar = np.linalg.matrix_rank(np.column_stack([np.ones(len(known)), known])) > moving.sum()
    kernel, degree = ("thin_plate_spline", 1) if planar else ("linear", 0)
    surface = RBFInterpolator(known, values, kernel=kernel, degree=degree)
    return lambda others: surface(others[:, moving])
