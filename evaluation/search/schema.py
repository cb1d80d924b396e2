"""The public format of a search: its JSON file."""

from collections.abc import Mapping
from typing import Any

from mergekit_av.evaluation.accuracy import Result
from mergekit_av.evaluation.rendering import as_json

from .outcome import Outcome
from .result import SearchResult


def search_json(found: SearchResult) -> dict[str, Any]:
    """Return the content of NAME.json: its provenance, and beside it what was found."""
    return {
        **found.provenance,
        "interrupted": found.interrupted,
        "budget": found.budget,
        "seconds": found.seconds,
        "surface_error": found.surface_error,
        "training_seconds": found.training,
        "outcomes": [_outcome(outcome) for outcome in found.outcomes],
        "effects": [
            {"domain": domain, "level": level, "over": other, "slopes": slopes}
            for (domain, level, other), slopes in found.effects.items()
        ],
        "spill": found.spills,
        "joint": [
            {"goal": one.goal, "seconds": one.seconds, "tests": _tests(one.tests)}
            for one in found.joint
        ],
        "settings": [_setting(found, number) for number in range(len(found.settings))],
    }


def _outcome(found: Outcome) -> dict[str, Any]:
    return {
        "goal": found.goal,
        "lambdas": found.lambdas,
        "met": found.met,
        "margin": found.margin,
        "damage": found.damage,
        "obstacles": found.obstacles,
        "test_damage": found.test_damage,
        "holds": found.holds if found.tests else None,
        "test_margin": found.test_margin if found.tests else None,
        "tests": _tests(found.tests),
    }


def _tests(results: Mapping[str, Result]) -> dict[str, Any]:
    return {domain: as_json(result) for domain, result in results.items()}


def _setting(found: SearchResult, number: int) -> dict[str, Any]:
    setting, means = found.settings[number], {}
    for domain, scores in setting.scores.items():
        levels = found.question.levels[domain]
        means[domain] = dict(zip(levels, scores.mean(axis=0).tolist(), strict=True))
    return {
        "lambdas": found.question.setting(setting.point),
        "damage": setting.damage,
        "margins": {
            f"{domain} {level}": float(values[number])
            for (domain, level), values in found.landscape.margins.items()
        },
        "mean_log_prob": means,
    }
