"""What may become records: rows from a data folder, or of a file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import dataset_of, file_rows, query_of, read_row
from mergekit_av.errors import AVError

QUERY = "query"  # beside the levels, the name of a candidate's part
# What an endpoint says of a text that its model did not end.
CUT = ("length", "content_filter")


@dataclass(frozen=True)
class Candidate:
    """What may become a record.

    Attributes:
        id: or where it stands, where it has none.
        responses: level → text; those that there are.
        row: as it is written once it is found clean.
        cut: its parts, `query` or a level, that the model which wrote them did not end.
        fault: what makes a record of it impossible, in words.
    """

    id: str
    query: str
    responses: Mapping[str, str]
    row: Mapping[str, Any]
    cut: frozenset[str] = frozenset()
    fault: str | None = None

    def parts(self) -> Iterator[tuple[str, str]]:
        """Name and text of the query and each response."""
        yield QUERY, self.query
        yield from self.responses.items()


def made(rows: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """Of the rows that were made in a data folder (see `assembly`)."""
    return [
        Candidate(
            row["id"],
            row["query"],
            row["responses"],
            row,
            frozenset(part for part, why in row["finish_reasons"].items() if why in CUT),
        )
        for row in rows
    ]


def found(domain: Domain, source: str | None) -> list[Candidate]:
    """Of a file of records, in any of their formats; without one, of the domain's own.

    Raises:
        AVError: it cannot be read, or is on the Hub.
    """
    if repo := dataset_of(domain, source):
        raise AVError(f"{repo} is on the Hub: download it and pass its file with --data")
    source = source or domain.records
    if source is None:
        raise AVError(f"the domain {domain.name} has no records: pass --data")
    if not Path(source).is_file():
        raise AVError(f"there is no record file {source}")
    return [_found(where, row, domain) for where, row in file_rows(Path(source))]


def _found(where: str, row: Any, domain: Domain) -> Candidate:
    id = str(row["id"]) if isinstance(row, dict) and row.get("id") is not None else where
    try:
        prompt, responses = read_row(row, domain, where)
    except AVError as error:
        fault = error.message.removeprefix(f"{where}: ")
        return Candidate(id, "", {}, row if isinstance(row, dict) else {"row": row}, fault=fault)
    return Candidate(id, query_of(prompt), responses, row)
