"""Domains: preference dimensions with a name, levels and records. A domain is data, not code.

A domain file is YAML:

    name: tone
    description: how warm an answer is
    levels:                    # best first, each with a sentence about it
      warm: friendly, personal, encouraging
      neutral: plain and factual
      cold: curt and distant
    records: tone.jsonl        # beside this file, or a Hub dataset id
"""

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from .errors import AVError

BUILT_IN = Path(__file__).parent / "domains"


@dataclass(frozen=True)
class Domain:
    """A preference dimension.

    Attributes:
        name: as in file names and tables.
        levels: level → a sentence about it; best first, at least two.
        description: what the dimension is about.
        records: a file (absolute), or a Hub dataset id, or None where the user must bring them.
        split: where set, the split of every record that names none.
    """

    name: str
    levels: dict[str, str]
    description: str = ""
    records: str | None = None
    split: str | None = None


def built_in_domains() -> list[str]:
    """Names of the domains that come with the package."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yml"))


def load_domain(name: str | os.PathLike) -> Domain:
    """A built-in domain by name, or one's own by the path of its YAML file.

    Raises:
        AVError: there is no such domain, or its file says something that it cannot.
    """
    path = Path(name)
    if path.suffix not in (".yml", ".yaml"):
        path = BUILT_IN / f"{name}.yml"
        if not path.is_file():
            known = ", ".join(built_in_domains())
            raise AVError(f"no domain {name!r}: built in are {known}; your own is a .yml file")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise AVError(f"there is no domain file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AVError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    return _checked(path, content)


def _checked(path: Path, content: object) -> Domain:
    if not isinstance(content, dict):
        raise AVError(f"{path} must hold a mapping with name, levels and records")
    unknown = set(content) - set(Domain.__dataclass_fields__)
    if unknown:
        known = ", ".join(Domain.__dataclass_fields__)
        raise AVError(f"{path}: unknown key {sorted(unknown)[0]!r}; known are {known}")
    levels = content.get("levels")
    if isinstance(levels, list) and all(isinstance(level, str) for level in levels):
        if len(set(levels)) < len(levels):
            raise AVError(f"{path}: a level stands twice under `levels`")
        levels = dict.fromkeys(levels, "")
    if not isinstance(levels, dict) or len(levels) < 2:
        raise AVError(f"{path}: `levels` must name at least two levels, best first")
    if not content.get("name") or not isinstance(content["name"], str):
        raise AVError(f"{path}: `name` is missing")
    records = content.get("records")
    if records is not None:
        beside = path.absolute().parent / str(records)
        looks_local = beside.suffix in (".jsonl", ".json", ".parquet")
        records = str(beside) if looks_local or beside.exists() else str(records)
    return Domain(
        name=content["name"],
        levels={str(level): str(text or "") for level, text in levels.items()},
        description=str(content.get("description", "")),
        records=records,
        split=content.get("split"),
    )
