"""Figures of a search: where a goal is met, and how well each of many goals."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mergekit_av.evaluation.plotting import COLOURS, load_pyplot, save

from .outcome import Outcome
from .result import SearchResult
from .surfaces import Surfaces

MET, NOT_MET, ON_TEST = COLOURS[0], "0.75", COLOURS[2]
# Points an axis of a map.
FINE = 81


def plot_slices(found: SearchResult, outcome: Outcome, file: Path) -> None:
    """Draw the worst margin around the setting that was found: a map for each pair of vectors, the
    others where they were found; for a single vector a line.

    Between the settings that were measured it is predicted by surfaces.

    Args:
        file: .png or .svg.

    Raises:
        AVError: matplotlib is not installed, or the file cannot be written.
    """
    pyplot = load_pyplot()
    # A vector that cannot move has no axis.
    names = [name for name, values in found.question.axes.items() if len(values) > 1]
    names = names or list(outcome.lambdas)[:1]
    pairs: list[tuple[str, ...]] = list(combinations(names, 2)) or [tuple(names)]
    figure, panels = pyplot.subplots(
        1, len(pairs), figsize=(0.8 + 4.0 * len(pairs), 4.2), squeeze=False, layout="constrained"
    )
    surfaces = Surfaces(found.question, found.settings)
    shown = None
    for axes, pair in zip(panels[0], pairs, strict=True):
        if len(pair) == 2:
            shown = _map(axes, found, surfaces, outcome, pair)
        else:
            _line(axes, found, outcome, pair[0])
    if shown is not None:
        figure.colorbar(shown, ax=panels[0].tolist(), label="worst margin, smoothed")
    title = ", ".join(f"{domain} {level}" for domain, level in outcome.goal.items())
    figure.suptitle(title + ("" if outcome.met else " (not reached)"), fontsize=10)
    save(figure, file)


def _map(
    axes, found: SearchResult, surfaces: Surfaces, outcome: Outcome, pair: Sequence[str]
) -> Any:
    """Draw margins over two vectors' λ; hatched where the language is predicted to be broken."""
    first, second = pair
    ranges = [found.question.axes[name] for name in pair]
    grids = [np.linspace(values[0], values[-1], FINE) for values in ranges]
    x, y = np.meshgrid(*grids)
    points = np.tile(np.array(list(outcome.lambdas.values())), (x.size, 1))
    columns = [list(outcome.lambdas).index(name) for name in pair]
    points[:, columns[0]], points[:, columns[1]] = x.ravel(), y.ravel()
    predicted = surfaces.landscape(points)
    margin = predicted.worst(outcome.goal, smooth=True).reshape(x.shape)
    image = axes.pcolormesh(x, y, margin, cmap="RdBu", vmin=-1, vmax=1, shading="auto")
    image.set_rasterized(True)
    if margin.min() < 0 < margin.max():
        axes.contour(x, y, margin, levels=[0], colors="k", linewidths=0.8)
    damage = predicted.damage.reshape(x.shape)
    if (damage > found.question.tolerance).any():
        limits = [found.question.tolerance, damage.max() + 1]
        axes.contourf(x, y, damage, levels=limits, colors="none", hatches=["///"])
    measured = np.array([setting.point for setting in found.settings])
    axes.plot(measured[:, columns[0]], measured[:, columns[1]], "k.", markersize=2, alpha=0.5)
    axes.plot(outcome.lambdas[first], outcome.lambdas[second], "k*", markersize=11)
    axes.set_xlabel(f"λ of {first}")
    axes.set_ylabel(f"λ of {second}")
    others = [f"{name} {value:g}" for name, value in outcome.lambdas.items() if name not in pair]
    axes.set_title("at " + ", ".join(others) if others else "", fontsize=9)
    return image


def _line(axes, found: SearchResult, outcome: Outcome, vector: str) -> None:
    """Draw the margin of each wanted level over one vector's λ, as measured."""
    landscape = found.landscape
    column = list(outcome.lambdas).index(vector)
    order = landscape.points[:, column].argsort()
    for wanted, colour in zip(outcome.goal.items(), COLOURS * len(outcome.goal), strict=False):
        margins = landscape.smooth[wanted][order]
        style = {"color": colour, "label": " ".join(wanted), "markersize": 3}
        axes.plot(landscape.points[order, column], margins, "o-", **style)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.axvline(outcome.lambdas[vector], color="k", linewidth=0.8, linestyle=":")
    axes.set_xlabel(f"λ of {vector}")
    axes.set_ylabel("margin, smoothed")
    axes.legend(frameon=False, fontsize=8)


def plot_goals(outcomes: Sequence[Outcome], file: Path) -> None:
    """Draw a bar a goal, the best first: the worst margin on the validation records, and as a dot that
    on the test records.

    Args:
        file: .png or .svg.

    Raises:
        AVError: matplotlib is not installed, or the file cannot be written.
    """
    pyplot = load_pyplot()
    ordered = sorted(outcomes, key=lambda found: (found.met, found.margin))
    labels = [", ".join(found.goal.values()) for found in ordered]
    figure, axes = pyplot.subplots(figsize=(7.5, 1.3 + 0.24 * len(ordered)), layout="constrained")
    rows = range(len(ordered))
    colours = [MET if found.met else NOT_MET for found in ordered]
    axes.barh(rows, [found.margin for found in ordered], color=colours, height=0.7)
    tested = [
        (row, found.test_margin) for row, found in zip(rows, ordered, strict=True) if found.tests
    ]
    if tested:
        heights, margins = zip(*tested, strict=True)
        style = {"color": ON_TEST, "markersize": 4, "label": "on the test records"}
        axes.plot(margins, heights, "o", **style)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_yticks(list(rows), labels, fontsize=8)
    axes.set_ylim(-0.8, len(ordered) - 0.2)
    axes.set_xlabel("worst margin (share of the records); blue where the goal is met")
    axes.set_title(", ".join(outcomes[0].goal), fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, file)
