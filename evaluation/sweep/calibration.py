"""Which λ brings out which level: chosen on validation records, reported on test records."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from mergekit_av.evaluation.accuracy import Result
from mergekit_av.stats import Estimate

from .sweep import Point


@dataclass(frozen=True)
class Best:
    """The λ at which a level does best.

    Attributes:
        value: λ.
        validation: the level's preference accuracy there on the validation records, which chose it.
        test: what was measured there on the test records.
        dominant: whether the level is dominant there, on the test records.
    """

    value: float
    validation: float
    test: Result
    dominant: bool


@dataclass(frozen=True)
class Calibration:
    """Which λ brings out which level of a vector's own domain.

    Attributes:
        best: level → the best λ of all.
        best_usable: level → the best λ in the usable range; empty where that was not measured.
    """

    best: dict[str, Best]
    best_usable: dict[str, Best]


def margin(result: Result, level: str) -> float:
    """Return by how many nats per token a level's responses lead the best other's, mean over the
    records.

    Smooth where accuracies of a few records move in steps.
    """
    return fmean(
        scores[level] - max(value for other, value in scores.items() if other != level)
        for scores in result.scores.values()
    )


def calibrate(
    points: Sequence[Point], vector: str, domain: str, usable: tuple[float, float] | None
) -> Calibration:
    """Choose for each level the λ of the highest accuracy on validation records.

    Where several have it, the one nearest to 0, which changes least. A level that no record prefers
    anywhere gets the λ of its largest margin.

    Args:
        points: of one vector, each with the domain's validation and test splits.
        usable: the usable range, where it was measured.
    """
    by_lambda = {point.lambdas[vector]: point for point in points}
    levels = list(points[0].results[domain, "test"].accuracy)

    def best(level: str, lambdas: Sequence[float]) -> Best:
        def rank(value: float) -> tuple[float, float, float]:
            result = by_lambda[value].results[domain, "validation"]
            share = result.accuracy[level].value
            return share, -abs(value) if share else 0.0, margin(result, level)

        value = max(lambdas, key=rank)
        test = by_lambda[value].results[domain, "test"]
        return Best(value, rank(value)[0], test, test.dominant == level)

    inside = [v for v in by_lambda if usable and usable[0] <= v <= usable[1]]
    return Calibration(
        {level: best(level, list(by_lambda)) for level in levels},
        {level: best(level, inside) for level in levels} if inside else {},
    )


def for_card(
    calibration: Calibration, usable: tuple[float, float] | None, source: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what an AV's metadata says of it.

    `levels` gives each level's λ for `Knobs.set`: in the usable range where that was measured, and
    null where the level is dominant on no test records there.

    Args:
        source: on what it was measured: base, records, dtype, versions.
    """
    chosen = calibration.best_usable or calibration.best

    def entry(level: str) -> dict[str, Any]:
        best = chosen[level]
        share: Estimate = best.test.accuracy[level]
        return {
            "lambda": best.value if best.dominant else None,
            "nearest": best.value,
            "validation": best.validation,
            "test": asdict(share),
        }

    return {
        **source,
        "usable_range": list(usable) if usable else None,
        "levels": {level: entry(level) for level in chosen},
    }
