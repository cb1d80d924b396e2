"""What model cards are made of: front matter, parts, and what a user wrote."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CardData, ModelCard, RepoCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from mergekit_av.errors import AVError, first_line

from .markdown import fenced

BEGIN = (
    "<!-- own words: what stands between these two lines is kept when the card is made again -->"
)
END = "<!-- end of own words -->"
OWN_WORDS = re.compile(f"^{re.escape(BEGIN)}$(.*?)^{re.escape(END)}$", re.MULTILINE | re.DOTALL)
LICENSE = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Kept:
    """What a new card keeps of an old one.

    Attributes:
        license: `license`, and `license_name` and `license_link` where that is `other`.
        words: a user's own, as they stand between the two lines.
    """

    license: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""

    @classmethod
    def of(cls, card: str) -> "Kept":
        """Return what is to be kept of a card; nothing of one that cannot be read."""
        found = OWN_WORDS.search(card)
        return cls(license_in(card), found[1].strip() if found else "")

    @classmethod
    def at(cls, file: Path) -> "Kept":
        """Return what is to be kept of a card's file; nothing where there is none."""
        return cls.of(file.read_text("utf-8", errors="replace")) if file.is_file() else cls()

    def or_else(self, other: "Kept") -> "Kept":
        """Return the same, filled up from another card."""
        return Kept(self.license or other.license, self.words or other.words)


def license_in(card: str) -> dict[str, Any]:
    """Return what a card's front matter says of the license."""
    block = REGEX_YAML_BLOCK.search(card)
    try:
        front = yaml.safe_load(block[2]) if block else None
    except Exception:  # PyYAML lets through what the constructors of its types raise
        return {}
    if not isinstance(front, dict):
        return {}
    found = {key: front[key] for key in LICENSE if isinstance(front.get(key), str)}
    return found if "license" in found else {}


def assemble(
    front: CardData, parts: Sequence[str], kept: Kept, kind: type[RepoCard] = ModelCard
) -> str:
    """Return a whole card: front matter, parts, and the place for the user's own words."""
    words = "\n\n".join(filter(None, (BEGIN, kept.words, END)))
    body = "\n\n".join([*parts, words])
    return str(kind(f"---\n{front.to_yaml()}\n---\n\n{body}\n"))


def with_kept(card: str, kept: Kept) -> str:
    """Return a card with another license and other own words, where there are any."""
    try:
        page = RepoCard(card, ignore_metadata_errors=True)
    except Exception as error:
        raise AVError(f"the top of README.md is no YAML: {first_line(error)}") from error
    for key, value in kept.license.items():
        page.data[key] = value
    words = "\n\n".join(filter(None, (BEGIN, kept.words, END)))
    return OWN_WORDS.sub(lambda _: words, str(page))


def recipe(content: Mapping[str, Any]) -> str:
    """YAML as in a recipe file, in a code block."""
    lines = yaml.safe_dump(
        dict(content), sort_keys=False, allow_unicode=True, width=1000, default_flow_style=None
    )
    return fenced(lines, "yaml")
