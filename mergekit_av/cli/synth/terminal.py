"""Annotating in a terminal: a response, the levels, a key."""

import shutil
import string
import textwrap
from collections.abc import Sequence

import click

from mergekit_av.data.domain import Domain
from mergekit_av.synthesis.annotate.items import AnnotationItem, Annotations

UNDO, QUIT = "u", "q"
CONTROL_D, BELL = "\x04", "\a"
KEYS = [key for key in string.digits[1:] + string.ascii_lowercase if key not in (UNDO, QUIT)]
WIDTH = 88


def ask(items: Sequence[AnnotationItem], domain: Domain, annotations: Annotations) -> None:
    """Show each item that has no level yet, and keep the level that is chosen, until all have one or
    the annotator stops.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was chosen is kept.
    """
    keys = dict(zip(KEYS, domain.levels, strict=False))
    by_id = {item.id: item for item in items}
    while left := [item for item in items if item.id not in annotations.chosen]:
        item = left[0]
        _show(item, domain, keys, number=len(items) - len(left) + 1, total=len(items))
        key = _key(keys)
        if key == QUIT:
            return
        if key == UNDO:
            # Only what belongs to this sample: an earlier one may have been another.
            last = next((by_id[id] for id in reversed(annotations.chosen) if id in by_id), None)
            if last:
                annotations.take_back(last)
                items = [last, *(item for item in items if item is not last)]
        else:
            annotations.choose([(item, keys[key])])


def _show(
    item: AnnotationItem, domain: Domain, keys: dict[str, str], number: int, total: int
) -> None:
    click.clear()
    click.secho(f"{number} of {total}", dim=True)
    for name, text in (("Query", item.query), ("Response", item.response)):
        click.secho(f"\n{name}\n", bold=True)
        click.echo("\n\n".join(_wrapped(part) for part in text.split("\n\n")))
    about = f" ({domain.description})" if domain.description else ""
    click.secho(f"\nWhich of these is the response?{about}\n", bold=True)
    for key, level in keys.items():
        click.echo(_wrapped(f"{level}: {domain.levels[level]}".rstrip(": "), f"{key}  "))
    click.secho(f"\n{UNDO} takes the last one back, {QUIT} stops; all is kept", dim=True)


def _key(keys: dict[str, str]) -> str:
    while True:
        try:
            key = click.getchar().lower()
        except EOFError:
            return QUIT
        if key in (*keys, UNDO):
            return key
        if key in (QUIT, CONTROL_D, ""):
            return QUIT
        click.echo(BELL, nl=False)


def _wrapped(text: str, first: str = "") -> str:
    width = min(WIDTH, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * len(first))
