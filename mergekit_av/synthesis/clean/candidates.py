"""Candidates for records: what was made in a data folder, or the rows of a file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_av.data.domain import Domain
from mergekit_av.data.formats import read_row
from mergekit_av.data.readers import file_rows
from mergekit_av.data.records import dataset_of, query_of
from mergekit_av.errors import AVError
from mergekit_av.synthesis.folder import DataFolder, Query, Response

QUERY = "query"  # beside the levels, the name of a candidate's part
# What an endpoint says of a text that its model did not end.
CUT = ("length", "content_filter")


@dataclass(frozen=True)
class Candidate:
    """Hold what may become a record.

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
        """Yield name and text of the query and each response."""
        yield QUERY, self.query
        yield from self.responses.items()


def made_candidates(folder: DataFolder) -> list[Candidate]:
    """Return a candidate of each query of a data folder, whether it has all its responses or not."""
    responses = folder.responses()
    rows = [_row(folder, query, responses.get(query.id, {})) for query in folder.queries()]
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


def read_candidates(domain: Domain, source: str | None) -> list[Candidate]:
    """Return a candidate of each row of a file, in any of the formats; without one, of the domain's
    own records.

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
    return [_read(where, row, domain) for where, row in file_rows(Path(source))]


def _read(where: str, row: Any, domain: Domain) -> Candidate:
    id = str(row["id"]) if isinstance(row, dict) and row.get("id") is not None else where
    try:
        prompt, responses = read_row(row, domain, where)
    except AVError as error:
        fault = error.message.removeprefix(f"{where}: ")
        return Candidate(id, "", {}, row if isinstance(row, dict) else {"row": row}, fault=fault)
    return Candidate(id, query_of(prompt), responses, row)


def _row(folder: DataFolder, query: Query, responses: dict[str, Response]) -> dict[str, Any]:
    """Return a row of the record format, with `provenance` and, for cleaning, `finish_reasons`: of the
    `query`, and of each level."""
    there = {level: responses[level] for level in folder.domain.levels if level in responses}
    asked = query.made or {}
    answered = [response.made for response in there.values()]
    first = answered[0] if answered else {}
    reasons = {level: response.made["finish_reason"] for level, response in there.items()}
    return {
        "id": query.id,
        "domain": folder.domain.name,
        "persona": query.persona.persona,
        "query": query.query,
        "responses": {level: response.text for level, response in there.items()},
        "provenance": {
            "persona_source": query.persona.source,
            "query_model": asked.get("model"),
            "query_prompt": asked.get("prompt"),
            "response_model": first.get("model"),
            "response_prompt": first.get("prompt"),
            "date": max((made["date"] for made in (asked, *answered) if made), default=None),
        },
        "finish_reasons": {"query": asked.get("finish_reason"), **reasons},
    }
