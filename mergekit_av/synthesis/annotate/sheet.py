"""Annotating in a spreadsheet: a CSV file with a column to fill in."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergekit_av.data.domain import Domain
from mergekit_av.errors import AVError
from mergekit_av.io.atomic import write_whole

from .items import AnnotationItem

ITEM, LEVEL = "item", "level"
# What spreadsheets put between cells, by language.
DELIMITERS = ",;\t"


def write_sheet(file: Path, items: Sequence[AnnotationItem], domain: Domain) -> None:
    """Write items without their levels; the head of the column to fill in says what may stand there.

    Raises:
        AVError: the file is there: it may hold somebody's work.
    """
    if file.exists():
        raise AVError(f"{file} is there already: choose another name")
    levels = "; ".join(f"{name} = {text}" if text else name for name, text in domain.levels.items())
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow([ITEM, "query", "response", f"{LEVEL} ({levels})"])
    writer.writerows([item.id, item.query, item.response, ""] for item in items)
    # The mark by which spreadsheets know UTF-8.
    write_whole(file, "\ufeff" + written.getvalue(), overwrite=False)


def read_sheet(
    file: Path, items: Sequence[AnnotationItem], domain: Domain
) -> list[tuple[AnnotationItem, str]]:
    """Return what was filled in: each item with a level.

    Raises:
        AVError: the file is no sheet of these items, or a level is missing or none of the domain's.
    """
    known = {item.id: item for item in items}
    levels: Mapping[str, str] = {level.casefold(): level for level in domain.levels}
    found: dict[str, str] = {}
    for line, row in _rows(file):
        id, level = row[ITEM].strip(), row[LEVEL].strip()
        if not id and not level:
            continue
        if id not in known:
            raise AVError(
                f"{file} line {line}: {id!r} is none of this annotator's items; --sample, --shared "
                "and --seed must be those that the sheet was written with"
            )
        if id in found:
            raise AVError(f"{file} line {line}: the item {id} stands there twice")
        if not level:
            raise AVError(f"{file} line {line}: no level is filled in; nothing was taken in")
        if level.casefold() not in levels:
            raise AVError(
                f"{file} line {line}: {level!r} is none of the levels {', '.join(domain.levels)}"
            )
        found[id] = levels[level.casefold()]
    missing = [id for id in known if id not in found]
    if missing:
        raise AVError(
            f"{file} lacks {len(missing)} of the {len(known)} items, the first of them {missing[0]}; "
            "nothing was taken in"
        )
    return [(known[id], level) for id, level in found.items()]


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Return line and cells of each row, by the first word of the column's head."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise AVError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise AVError(f"{file} is not UTF-8: save the sheet as CSV in UTF-8") from error
    head = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=head.partition(LEVEL)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        names = [(name.split() or [""])[0] for name in next(reader, [])]
        if not {ITEM, LEVEL} <= set(names):
            raise AVError(f"{file} has no columns {ITEM!r} and {LEVEL!r}: it is no sheet of ours")
        # A row may have fewer cells than the head.
        blank = dict.fromkeys(names, "")
        return [
            (reader.line_num, {**blank, **dict(zip(names, row, strict=False))}) for row in reader
        ]
    except csv.Error as error:
        raise AVError(f"{file} is not readable CSV: {error}") from error
