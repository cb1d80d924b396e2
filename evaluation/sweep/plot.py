"""Preference accuracy and mean log-probability against λ, as figures."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mergekit_av.data.domain import Domain
from mergekit_av.evaluation.plotting import COLOURS, load_pyplot, save

from .result import Sweep

OUTSIDE = "0.88"


def plot_levels(
    points: Mapping[float, Mapping[str, Any]], levels: Sequence[str], title: str, file: Path
) -> None:
    """Draw a domain's accuracies and mean log-probabilities, intervals shaded, over λ.

    Args:
        points: λ → a domain's entry in `av-eval --json`.
        levels: in the order in which they are coloured, best first.
        file: .png or .svg.

    Raises:
        AVError: matplotlib is not installed.
    """
    pyplot = load_pyplot()
    lambdas = sorted(points)
    figure, (shares, means) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axes, key in ((shares, "accuracy"), (means, "mean_log_prob")):
        for level, colour in _coloured(levels):
            estimates = [points[value][key][level] for value in lambdas]
            _line(axes, lambdas, estimates, level, colour)
        axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        axes.set_xlabel("λ")
        axes.spines[["top", "right"]].set_visible(False)
    shares.set_ylabel("preference accuracy")
    shares.set_ylim(-0.02, 1.02)
    means.set_ylabel("mean log-probability (nats per token)")
    shares.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    save(figure, file)


def plot_sweep(sweeps: Sequence[Sweep], domains: Sequence[Domain], file: Path) -> None:
    """Draw a row per vector, a panel per domain: accuracies of the test records over λ, intervals
    shaded; grey outside the usable range.

    Args:
        file: .png or .svg.

    Raises:
        AVError: matplotlib is not installed, or the file cannot be written.
    """
    pyplot = load_pyplot()
    figure, grid = pyplot.subplots(
        len(sweeps),
        len(domains),
        figsize=(max(5.6, 0.6 + 3.4 * len(domains)), 1.2 + 2.6 * len(sweeps)),
        sharex="row",
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, sweep in zip(grid, sweeps, strict=True):
        for axes, domain in zip(row, domains, strict=True):
            _panel(axes, sweep, domain)
        row[0].set_ylabel("preference accuracy")
    for axes in grid[-1]:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, frameon=False, fontsize=8
        )
    notes = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[0], alpha=0.12)]
    texts = ["95 % interval"]
    if any(sweep.usable_range for sweep in sweeps):
        notes.append(pyplot.Rectangle((0, 0), 1, 1, color=OUTSIDE))
        texts.append("outside the usable range: what it writes is no longer language")
    figure.legend(notes, texts, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save(figure, file)


def _panel(axes, sweep: Sweep, domain: Domain) -> None:
    """Draw what one vector's λ does in one domain."""
    lambdas = sweep.lambdas
    results = [point.results[domain.name, "test"] for point in sweep.points]
    for level, colour in _coloured(list(domain.levels)):
        estimates = [asdict(result.accuracy[level]) for result in results]
        _line(axes, lambdas, estimates, level, colour)
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    if sweep.usable_range is not None:
        low, high = sweep.usable_range
        for start, end in ((lambdas[0], low), (high, lambdas[-1])):
            if start < end:
                axes.axvspan(start, end, color=OUTSIDE, linewidth=0, zorder=-1)
    own = "" if domain.name == sweep.domain else ", out of domain"
    axes.set_title(f"{domain.name}{own} ({results[0].records} records)", fontsize=9)
    axes.set_xlabel(f"λ of {sweep.vector}")
    axes.set_ylim(-0.02, 1.02)
    axes.spines[["top", "right"]].set_visible(False)


def _coloured(levels: Sequence[str]) -> list[tuple[str, str]]:
    """Return levels with their colours; of two, the second is the worst."""
    colours = COLOURS[::2] if len(levels) == 2 else itertools.cycle(COLOURS)
    return list(zip(levels, colours, strict=False))


def _line(axes, lambdas: Sequence[float], estimates: Sequence[Mapping], level: str, colour: str):
    """Draw one level's values over λ, its intervals shaded."""
    axes.plot(
        lambdas, [e["value"] for e in estimates], "o-", color=colour, label=level, markersize=3
    )
    low, high = ([e[end] for e in estimates] for end in ("low", "high"))
    axes.fill_between(lambdas, low, high, color=colour, alpha=0.12, linewidth=0)


def read_domain(report: Path, domain: str) -> dict[str, Any]:
    """Read one domain's entry of a report that `av-eval --json` wrote."""
    content = json.loads(report.read_text("utf-8"))
    return next(entry for entry in content["domains"] if entry["domain"] == domain)
