"""Preference accuracy and mean log-probability against λ, as a figure."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_av.errors import AVError

# The best level in blue, the worst in red; from Okabe and Ito's palette, readable for all.
COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")


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
    try:
        import matplotlib
    except ImportError:
        raise AVError("plots need matplotlib: pip install 'mergekit-av[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    lambdas = sorted(points)
    figure, (shares, means) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axes, key in ((shares, "accuracy"), (means, "mean_log_prob")):
        for level, colour in zip(levels, COLOURS, strict=False):
            estimates = [points[value][key][level] for value in lambdas]
            axes.plot(lambdas, [e["value"] for e in estimates], "o-", color=colour, label=level)
            axes.fill_between(
                lambdas,
                [e["low"] for e in estimates],
                [e["high"] for e in estimates],
                color=colour,
                alpha=0.12,
                linewidth=0,
            )
        axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        axes.set_xlabel("λ")
        axes.spines[["top", "right"]].set_visible(False)
    shares.set_ylabel("preference accuracy")
    shares.set_ylim(-0.02, 1.02)
    means.set_ylabel("mean log-probability (nats per token)")
    shares.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def read_domain(report: Path, domain: str) -> dict[str, Any]:
    """One domain's entry of a report that `av-eval --json` wrote."""
    content = json.loads(report.read_text("utf-8"))
    return next(entry for entry in content["domains"] if entry["domain"] == domain)
