"""The public formats of a sweep: sweep.json, all of it, and sweep.csv, tidy."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mergekit_av.evaluation.accuracy import Result
from mergekit_av.evaluation.rendering import as_json
from mergekit_av.evaluation.specificity import Specificity

from .calibration import Best
from .result import Sweep, SweepResult
from .sweep import Point

COLUMNS = (
    *("vector", "lambda", "usable", "prompt", "domain", "split", "records", "level"),
    *("accuracy", "accuracy_low", "accuracy_high"),
    *("mean_log_prob", "mean_log_prob_low", "mean_log_prob_high"),
)


def sweep_json(found: SweepResult) -> dict[str, Any]:
    """Return the content of sweep.json: its provenance, and beside it `sweeps` and `prompting`."""
    return {
        **found.provenance,
        "sweeps": [_sweep(sweep) for sweep in found.sweeps],
        "prompting": [
            {"prompt": level, "cost": asdict(cost), "result": as_json(result)}
            for results in found.prompting.values()
            for level, (result, cost) in results.items()
        ],
    }


def _sweep(sweep: Sweep) -> dict[str, Any]:
    calibration = sweep.calibration
    return {
        "vector": sweep.vector,
        "domain": sweep.domain,
        "usable_range": sweep.usable_range,
        "best": calibration and _bests(calibration.best),
        "best_usable": calibration and _bests(calibration.best_usable),
        "specificity": [_specificity(found) for found in sweep.specificities],
        "queries": sweep.queries,
        "points": [_point(sweep.vector, point) for point in sweep.points],
    }


def _specificity(found: Specificity) -> dict[str, Any]:
    return {
        "lambda": found.value,
        "effects": [
            {"domain": domain, "level": level, "over": other, **as_json(effect)}
            for (domain, level, other), effect in found.effects.items()
        ],
        "spill": found.spill and as_json(found.spill),
    }


def _bests(bests: Mapping[str, Best]) -> dict[str, Any]:
    return {
        level: {
            "lambda": best.value,
            "validation": best.validation,
            "test": asdict(best.test.accuracy[level]),
            "dominant": best.dominant,
        }
        for level, best in bests.items()
    }


def _point(vector: str, point: Point) -> dict[str, Any]:
    return {
        "lambda": point.lambdas[vector],
        "results": [as_json(result) for result in point.results.values()],
        "fluency": point.fluency and asdict(point.fluency),
        "answers": {id: asdict(answer) for id, answer in point.answers.items()},
    }


def sweep_csv(found: SweepResult) -> str:
    """Return the content of sweep.csv: a line a level of each result, `COLUMNS` above.

    What the base prefers when asked in words has no vector, and names the level in `prompt`.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(COLUMNS)
    for sweep in found.sweeps:
        for value, point in zip(sweep.lambdas, sweep.points, strict=True):
            for result in point.results.values():
                writer.writerows(_rows(result, sweep.vector, value, sweep.usable(value), None))
    for results in found.prompting.values():
        for level, (result, _) in results.items():
            if level is not None:
                writer.writerows(_rows(result, None, 0, None, level))
    return lines.getvalue()


def _rows(result: Result, *start: Any) -> list[tuple]:
    rows = []
    for level, share in result.accuracy.items():
        mean = result.mean_log_prob[level]
        ends = (end if math.isfinite(end) else None for end in (mean.low, mean.high))
        about = (*start, result.domain, result.split, result.records, level)
        rows.append((*about, share.value, share.low, share.high, mean.value, *ends))
    return rows
