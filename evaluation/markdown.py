"""Results and facts as Markdown."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .accuracy import Result


def facts(source: Mapping[str, Any]) -> str:
    """On what something was measured."""
    rows = []
    for key, value in source.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {inner}" for name, inner in value.items())
        elif isinstance(value, bool):
            value = yes(value)
        rows.append([key, plain(value)])
    return table(["", ""], rows)


def shares(result: Result, interval: bool = True) -> list[str]:
    """Preference accuracy of each level."""
    return [share(result, level, interval) for level in result.accuracy]


def share(result: Result, level: str, interval: bool = True, bold: bool = True) -> str:
    """Preference accuracy of a level, with its 95 % interval; bold where it is dominant."""
    found = result.accuracy[level]
    text = f"{found.value:.2f}"
    if bold and level == result.dominant:
        text = f"**{text}**"
    return f"{text} ({found.low:.2f}–{found.high:.2f})" if interval else text


def plain(text: str) -> str:
    """Somebody else's text on one line, none of it read as Markdown or HTML."""
    special = r"[\\`*\[\]<>~$&]|(?<!\w)_|_(?!\w)"  # an underscore within a word is harmless
    return re.sub(special, r"\\\g<0>", " ".join(text.split()))


def yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: ""}[value]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])
