"""Matplotlib and the colours of all figures."""

import io
from pathlib import Path

from mergekit_av.extras import require
from mergekit_av.io.atomic import write_whole

# The best level in blue, the worst in red; from Okabe and Ito's palette, readable for all.
COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")


def load_pyplot():
    """Load matplotlib, drawing into files.

    Raises:
        AVError: it is not installed.
    """
    require("plot", "matplotlib", to="draw plots")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure, file: Path) -> None:
    """Write a figure as .png or .svg; the same figure gives the same bytes.

    Raises:
        AVError: the file cannot be written.
    """
    pyplot = load_pyplot()
    image, suffix = io.BytesIO(), file.suffix.removeprefix(".")
    with pyplot.rc_context({"svg.hashsalt": "mergekit-av"}):
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(image, format=suffix, dpi=150, metadata=metadata)
    pyplot.close(figure)
    write_whole(file, image.getvalue())
