"""The folder of a data set that is being made, and its files.

    domain.yml         the domain, with which everything is made: levels, instructions, words
    prompts/           what the model is asked: text files, yours to edit before a stage begins
    settings.json      stage → what it is made with; it is not continued with anything else
    sampled.jsonl      personas from elsewhere
    created.jsonl      CreatePersona: the roots, and what each persona was expanded to
    queries.jsonl      a query of each persona
    responses.jsonl    a response to each query at each level
    old/               stages that were started over
    spending.json      stage → calls, tokens, USD
    records.jsonl      the data set, cleaned: what av-train reads
    README.md          its card
    dropped.jsonl      what was left out, and why
    cleaning.md        how much was, and what the lengths tell; cleaning.json has the numbers
    annotations/       annotator → the levels that they chose for responses

The four stages are journals: a line is added, and is on disk, when its completion is there. A line
that a model made has `made`: `model`, `date` (UTC), `finish_reason`, `prompt` (its fingerprint), and
`usage` (`calls`, `input` and `output` tokens, `usd` or null).

    sampled.jsonl      id, persona, source
    created.jsonl      id, round, depth, parent (a persona's id, null for roots),
                       personas [{persona, query or null}], made
    queries.jsonl      id, persona_id, query, made (null where the persona came with its query)
    responses.jsonl    query_id, level, paragraphs, text, made

Ids are hashes of the texts, so what was made of a text that is there no more is passed over.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_av.data.domain import DOMAIN, Domain, load_domain
from mergekit_av.data.records import RECORDS
from mergekit_av.endpoints.budget import Usage
from mergekit_av.errors import AVError
from mergekit_av.io.atomic import write_whole
from mergekit_av.io.journal import Journal, read_journal
from mergekit_av.io.json import read_json
from mergekit_av.io.locks import locked
from mergekit_av.io.temporary import check_writable

from .prompts import Prompt, copy_prompts

STAGES = SAMPLED, CREATED, QUERIES, RESPONSES = "sampled", "created", "queries", "responses"
FIELDS = {
    SAMPLED: ("id", "persona", "source"),
    CREATED: ("id", "round", "depth", "personas", "made"),
    QUERIES: ("id", "persona_id", "query", "made"),
    RESPONSES: ("query_id", "level", "paragraphs", "text", "made"),
}
PROMPTS, SETTINGS, OLD = "prompts", "settings.json", "old"
SPENDING = "spending.json"
IN_USE = "choose another folder"  # what to do where another process holds a folder


@dataclass(frozen=True)
class Persona:
    """Describe somebody who asks.

    Attributes:
        source: of whom the persona was taken; `CreatePersona` for our own.
        query: where the persona came with one.
    """

    id: str
    persona: str
    source: str
    query: str | None = None
    made: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Query:
    """Hold what a persona asks.

    Attributes:
        made: of its own completion, or of the one that the persona came from.
    """

    id: str
    persona: Persona
    query: str
    made: Mapping[str, Any] | None


@dataclass(frozen=True)
class Response:
    """Hold what is answered to a query at a level."""

    query_id: str
    level: str
    paragraphs: int
    text: str
    made: Mapping[str, Any]


class DataFolder:
    """Open a data folder that is there.

    Attributes:
        path, domain.

    Raises:
        AVError: there is no such folder, it is of something else, or its domain file is wrong.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        if not (self.path / DOMAIN).is_file():
            raise AVError(
                f"{self.path} is no data folder, which has a {DOMAIN}: begin one with av-synth "
                "personas, or av-synth run"
            )
        self.domain = load_domain(self.path / DOMAIN)

    @classmethod
    def begin(cls, path: Path, domain: Domain) -> "DataFolder":
        """Return the folder of a domain: as it is, or made.

        Raises:
            AVError: it is there and of another domain, or of something else; it cannot be made.
        """
        path = Path(path)
        written = domain.to_yaml(RECORDS)
        if (path / DOMAIN).is_file():
            folder = cls(path)
            if folder.domain.to_yaml(RECORDS) != written:
                raise AVError(
                    f"{path / DOMAIN} says something else than the domain {domain.name} that is "
                    "asked for: edit it there, or choose another folder"
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise AVError(f"{path} holds something else: choose another folder")
        else:
            check_writable(path)
            write_whole(path / DOMAIN, written)
        copy_prompts(path / PROMPTS)
        return cls(path)

    def prompt(self, name: str) -> Prompt:
        """Return one of OWN's prompts, as it is in this folder."""
        return Prompt(self.path / PROMPTS, name, self.domain)

    def file(self, stage: str) -> Path:
        """Return the journal's file of a stage."""
        return self.path / f"{stage}.jsonl"

    def stage(self, stage: str, settings: Mapping[str, Any], restart: bool = False) -> "Journal":
        """Open the journal of a stage, to add to it.

        Args:
            settings: what the stage is made with.
            restart: start over where that has changed; what was made is kept in `old/`.

        Raises:
            AVError: it was made with other settings; another process is at it.
        """
        journal = Journal(self.file(stage))
        try:
            before = self._settings()
            change = _change(before.get(stage), settings) if journal.entries else None
            if change and not restart:
                raise AVError(
                    f"{self.file(stage)} was made with another {change}: go on with the same, choose "
                    f"another folder, or start the stage over with --restart, which keeps what is "
                    f"there in {self.path / OLD}"
                )
            if change:
                self._put_aside(stage)
                journal.close()
                journal = Journal(self.file(stage))
            write_whole(self.path / SETTINGS, _json({**before, stage: dict(settings)}))
        except BaseException:
            journal.close()
            raise
        return journal

    def made_with(self, key: str) -> Any | None:
        """Return a setting, as the latest stage that has it was made with."""
        settings = self._settings()
        found = [settings[s][key] for s in STAGES if key in settings.get(s, {})]
        return found[-1] if found else None

    def personas(self) -> list[Persona]:
        """Return all, each once: those from elsewhere, then those created."""
        found = [
            Persona(entry["id"], entry["persona"], entry["source"])
            for entry in self.entries(SAMPLED)
        ]
        for entry in self.entries(CREATED):
            found += [
                Persona(
                    id_of(one["persona"]),
                    one["persona"],
                    "CreatePersona",
                    one["query"],
                    entry["made"],
                )
                for one in entry["personas"]
            ]
        return list({persona.id: persona for persona in reversed(found)}.values())[::-1]

    def queries(self) -> list[Query]:
        """Return those of the personas that are there, in order of the personas."""
        made = {entry["persona_id"]: entry for entry in self.entries(QUERIES)}
        return [
            Query(entry["id"], persona, entry["query"], entry["made"] or persona.made)
            for persona in self.personas()
            if (entry := made.get(persona.id))
        ]

    def responses(self) -> dict[str, dict[str, Response]]:
        """Return query id → level → response."""
        found: dict[str, dict[str, Response]] = {}
        for entry in self.entries(RESPONSES):
            response = Response(**{key: entry[key] for key in FIELDS[RESPONSES]})
            found.setdefault(response.query_id, {})[response.level] = response
        return found

    def spending(self) -> dict[str, Usage]:
        """Return stage → what it has cost, with what was started over."""
        found = {}
        for stage in (CREATED, QUERIES, RESPONSES):
            files = [self.file(stage), *sorted((self.path / OLD).glob(f"{stage}-*.jsonl"))]
            made = [entry.get("made") for file in files for entry in read_journal(file)]
            found[stage] = sum((Usage(**one["usage"]) for one in made if one), Usage())
        return found

    def keep_spending(self) -> None:
        """Write `spending.json`."""
        usage = {stage: usage.as_json() for stage, usage in self.spending().items()}
        write_whole(self.path / SPENDING, _json(usage))

    def entries(self, stage: str) -> list[dict[str, Any]]:
        """Return the lines of a stage, whoever may be adding to it.

        Raises:
            AVError: a line lacks something.
        """
        entries = read_journal(self.file(stage))
        for number, entry in enumerate(entries, 1):
            if missing := [key for key in FIELDS[stage] if key not in entry]:
                raise AVError(f"{self.file(stage)}, line {number} has no `{missing[0]}`")
        return entries

    def _settings(self) -> dict[str, Any]:
        file = self.path / SETTINGS
        return read_json(file) if file.exists() else {}

    def _put_aside(self, stage: str) -> None:
        old = self.path / OLD
        old.mkdir(exist_ok=True)
        numbers = itertools.count(1)
        free = next(path for n in numbers if not (path := old / f"{stage}-{n}.jsonl").exists())
        self.file(stage).rename(free)


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[DataFolder]:
    """Open a data folder that is there, and hold it: each stage reads what the ones before it made.

    Raises:
        AVError: see `DataFolder`; another process is at it.
    """
    folder = DataFolder(path)
    with locked(path, IN_USE):
        yield folder


@contextlib.contextmanager
def begun_folder(domain: str | Path, path: Path | None = None) -> Iterator[DataFolder]:
    """Begin the data folder of a domain, or open the one that is there, and hold it.

    Args:
        domain: a name or YAML file.
        path: `data/DOMAIN` without it.

    Raises:
        AVError: see `load_domain` and `DataFolder.begin`; another process is at it.
    """
    chosen = load_domain(domain)
    path = path or Path("data") / chosen.name
    with locked(path, IN_USE):
        yield DataFolder.begin(path, chosen)


def id_of(*texts: str) -> str:
    """Return the id of what has these texts."""
    return hashlib.sha256("\0".join(texts).encode(errors="replace")).hexdigest()[:16]


def _change(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """Return the first setting that is not what it was, in words."""
    before = before or {}
    for key in [*now, *before]:
        # The same model may be at another address.
        if key != "base_url" and (was := before.get(key)) != (is_now := now.get(key)):
            is_short = not key.startswith("prompt") and not isinstance(was, dict)
            return f"{key} ({was!r}, not {is_now!r})" if is_short else key
    return None


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
