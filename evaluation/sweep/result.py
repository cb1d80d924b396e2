"""The result of a sweep, and what it says of each vector."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mergekit_av.data.domain import Domain
from mergekit_av.evaluation.accuracy import Result
from mergekit_av.evaluation.fluency import usable_range
from mergekit_av.evaluation.specificity import Specificity, specificity

from .calibration import Calibration, calibrate
from .prompting import Cost
from .sweep import Point


@dataclass(frozen=True)
class Sweep:
    """The sweep of one vector, or the part of it that was measured.

    Attributes:
        vector: its name.
        domain: its own domain; None where that is not among those scored.
        points: by rising λ; 0 is among them.
        queries: record id → the query that was answered at each λ.
    """

    vector: str
    domain: str | None
    points: list[Point]
    queries: dict[str, str] = field(default_factory=dict)

    @property
    def lambdas(self) -> list[float]:
        """The λ of the points."""
        return [point.lambdas[self.vector] for point in self.points]

    def at(self, value: float) -> Point:
        """Return the point at a λ."""
        return self.points[self.lambdas.index(value)]

    @cached_property
    def usable_range(self) -> tuple[float, float] | None:
        """The span of λ in which the fluency guard holds; None where it was not measured."""
        measured = dict(zip(self.lambdas, (point.fluency for point in self.points), strict=True))
        return usable_range({value: seen for value, seen in measured.items() if seen is not None})

    @cached_property
    def calibration(self) -> Calibration | None:
        """Which λ brings out which level; None without validation records of its own domain."""
        if self.domain is None or (self.domain, "validation") not in self.points[0].results:
            return None
        return calibrate(self.points, self.vector, self.domain, self.usable_range)

    @cached_property
    def specificities(self) -> list[Specificity]:
        """What the vector moves below and above 0, on test records: up to the ends of the usable range, of
        the sweep where that was not measured. Empty where its own domain was not scored, or no other."""
        base = _tests(self.at(0.0))
        if self.domain not in base or len(base) < 2:
            return []
        ends = self.usable_range or (self.lambdas[0], self.lambdas[-1])
        return [
            specificity(self.domain, value, base, _tests(self.at(value))) for value in ends if value
        ]

    def usable(self, value: float) -> bool | None:
        """Return whether λ lies in the usable range; None where it was not measured."""
        if self.usable_range is None:
            return None
        low, high = self.usable_range
        return low <= value <= high


def _tests(point: Point) -> dict[str, Result]:
    return {domain: found for (domain, split), found in point.results.items() if split == "test"}


@dataclass
class SweepResult:
    """All that `av-sweep` measures.

    Attributes:
        provenance: how it was measured: base, vectors, dtype, device, machine, versions and the like.
        domains: those scored.
        sweeps: one a vector.
        prompting: domain → level → the base's result when asked for the level in words, and what
            the asking costs; the key None is the bare query.
    """

    provenance: dict[str, Any]
    domains: list[Domain]
    sweeps: list[Sweep] = field(default_factory=list)
    prompting: dict[str, dict[str | None, tuple[Result, Cost]]] = field(default_factory=dict)
