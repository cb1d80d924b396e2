"""Markdown that nothing from elsewhere can break.

Names, numbers and settings come from files that a stranger may have written. In a card or a report
they are text and nothing else: no markup, no second table column, no end of a code block.
"""

import re
from collections.abc import Mapping, Sequence

from mergekit_av.errors import printable

MARKUP = re.compile(r"[\\`*\[\]|~<>#!&$]|(?<!\w)_|_(?!\w)")
BAR = re.compile(r"(?<!\\)\|")


def text(value: object) -> str:
    """Return a value as plain words on one line."""
    return MARKUP.sub(r"\\\g<0>", printable(" ".join(str(value).split())))


def fenced(code: str, language: str) -> str:
    """Return a code block that its content cannot end."""
    code = printable(code)
    longest = max(map(len, re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown; what is from elsewhere goes through `text` first."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(BAR.sub(r"\\|", cell) for cell in cells) + " |"

    return "\n".join(map(line, (head, ["---"] * len(head), *rows)))


def facts(values: Mapping[str, object]) -> str:
    """Return a table of names and values."""
    return table(("", ""), [(text(name), text(value)) for name, value in values.items()])
