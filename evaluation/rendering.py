"""Preference accuracies as figures: for a terminal, for Markdown, and for JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mergekit_av.stats import Estimate
from mergekit_av.text.tables import aligned

from .accuracy import Result


def with_interval(estimate: Estimate) -> str:
    """Return a value with its 95 % interval: `0.50 (0.22–0.78)`."""
    return f"{estimate.value:.2f} ({estimate.low:.2f}–{estimate.high:.2f})"


def interval(estimate: Estimate) -> str:
    """Return a 95 % interval for a column of its own; empty where it has no end."""
    return f"{estimate.low:.2f} … {estimate.high:.2f}" if math.isfinite(estimate.low) else ""


def accuracy_table(results: Sequence[Result]) -> str:
    """Return results as aligned text, a line per level."""
    rows: list[tuple[str, ...]] = [("domain", "level", "accuracy", "95 %", "log-prob", "95 %", "")]
    for result in results:
        title = f"{result.domain} ({result.records})"
        for level, share in result.accuracy.items():
            mean = result.mean_log_prob[level]
            dominant = "dominant" if level == result.dominant else ""
            shares = f"{share.value:.2f}", interval(share)
            means = f"{mean.value:.2f}", interval(mean)
            rows.append((title, level, *shares, *means, dominant))
            title = ""
    return aligned(rows)


def share(result: Result, level: str) -> str:
    """Return a level's accuracy with its interval in Markdown, bold where it is dominant."""
    value, _, rest = with_interval(result.accuracy[level]).partition(" ")
    return f"**{value}** {rest}" if level == result.dominant else f"{value} {rest}"


def shares(result: Result) -> str:
    """Return the accuracies of all levels in one cell of Markdown, the dominant one bold."""
    values = {level: f"{found.value:.2f}" for level, found in result.accuracy.items()}
    return " / ".join(
        f"**{value}**" if level == result.dominant else value for level, value in values.items()
    )


def mean_log_probs(result: Result) -> str:
    """Return the mean log-probabilities of all levels in one cell."""
    return " / ".join(f"{mean.value:.2f}" for mean in result.mean_log_prob.values())


def yes(value: bool | None) -> str:
    """Return yes or no, and nothing for what is not known."""
    return {True: "yes", False: "no", None: ""}[value]


def in_words(source: Mapping[str, Any]) -> dict[str, str]:
    """Return what a report says of how it was measured, each value as words."""

    def words(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name} {inner}" for name, inner in value.items())
        return yes(value) if isinstance(value, bool) else str(value)

    return {name: words(value) for name, value in source.items()}


def as_json(result: Result | Estimate) -> dict[str, Any]:
    """Return a result or an estimate for a JSON file; an interval that has no end is null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(inner) for key, inner in value.items()}
        return None if value in (math.inf, -math.inf) else value

    return finite(asdict(result))
