"""The ways in which the tensors of a vector may be stored."""

from pathlib import Path

from .delta import Delta, DenseDelta
from .low_rank_delta import LowRankDelta

# The first kind that finds its files in a folder reads them; where none does, the dense one.
KINDS: list[type[Delta]] = [LowRankDelta]


def open_delta(folder: Path) -> Delta:
    """Return the tensors in a vector's folder, of whatever kind; nothing is read yet."""
    for kind in KINDS:
        if kind.is_in(folder):
            return kind(folder)
    return DenseDelta(folder)
