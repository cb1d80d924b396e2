"""Domains: preference dimensions with a name, levels and records. A domain is data, not code.

A domain file is YAML:

    name: tone
    description: how warm an answer is
    levels:                    # best first, each with a sentence about it
      warm: friendly, personal, encouraging
      neutral: plain and factual
      cold: curt and distant
    paraphrases:               # optional: the same in other words, of which the judge is shown some
      warm: [kind and close to the reader, cheers people up]
    prompts:                   # optional: what asks a model for a level in words
      cold: Answer curtly and keep your distance.
    words:                     # optional: for the prompts of av-synth
      domain_expert: a good host
    records: tone.jsonl        # beside this file, or a Hub dataset id
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mergekit_av.errors import AVError
from mergekit_av.io.yaml import read_yaml

BUILT_IN = Path(__file__).parent / "builtin"
# In a folder that av-synth made.
DOMAIN = "domain.yml"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Domain:
    """Describe a preference dimension.

    Attributes:
        name: as in file names and tables.
        levels: level → a sentence about it; best first, at least two.
        description: what the dimension is about.
        paraphrases: level → other sentences that say the same about it; may be empty.
        prompts: level → the instruction that asks for it, put before a query; may be empty.
        records: a file (absolute), or a Hub dataset id, or None where the user must bring them.
        split: where set, the split of every record that names none.
        words: placeholder → what stands for it in the prompts that synthesis asks with:
            `domain_lingo` (what the field is called), `domain_expert` (whom one would consult),
            `solution_lingo` (what one gets there), and any others that one's own prompts use.
    """

    name: str
    levels: dict[str, str]
    description: str = ""
    paraphrases: dict[str, list[str]] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    records: str | None = None
    split: str | None = None
    words: dict[str, str] = field(default_factory=dict)

    def to_yaml(self, records: str | None) -> str:
        """Return the content of a domain file that says the same, but for where its records are."""
        content = {
            "name": self.name,
            "description": self.description,
            "levels": self.levels,
            "paraphrases": self.paraphrases,
            "prompts": self.prompts,
            "words": self.words,
            "records": records,
            "split": self.split,
        }
        written = {key: value for key, value in content.items() if value}
        return yaml.safe_dump(written, sort_keys=False, allow_unicode=True, width=100)

    def wordings(self, level: str) -> list[str]:
        """Return what a level can be described with, each once: its sentence (or else its name), then the
        paraphrases."""
        wordings = [self.levels[level] or level, *self.paraphrases.get(level, [])]
        return list(dict.fromkeys(wordings))


def built_in_domains() -> list[str]:
    """Return the names of the domains that come with the package."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yml"))


def load_domain(name: str | os.PathLike) -> Domain:
    """Load a built-in domain by name, or one's own by the path of its YAML file.

    Raises:
        AVError: there is no such domain, or its file says something that it cannot.
    """
    path = Path(name)
    if path.suffix not in (".yml", ".yaml"):
        if str(name) not in built_in_domains():
            known = ", ".join(built_in_domains())
            raise AVError(f"no domain {str(name)!r}: built in are {known}; your own is a .yml file")
        path = BUILT_IN / f"{name}.yml"
    try:
        content = read_yaml(path)
    except OSError as error:
        raise AVError(f"cannot read the domain file {path}: {error.strerror}") from error
    return _checked(path, content)


def _checked(path: Path, content: object) -> Domain:
    if not isinstance(content, dict):
        raise AVError(f"{path} must hold a mapping with name, levels and records")
    unknown = [key for key in content if key not in Domain.__dataclass_fields__]
    if unknown:
        known = ", ".join(Domain.__dataclass_fields__)
        raise AVError(f"{path}: unknown key {unknown[0]!r}; known are {known}")
    for key in ("name", "description", "records", "split"):
        if not isinstance(content.get(key), str | None):
            raise AVError(f"{path}: `{key}` must be text, not {content[key]!r}")
    name, split = content.get("name") or "", content.get("split")
    if name in ("", ".", "..") or Path(name).name != name:
        raise AVError(f"{path}: `name` must be a name that a file can have, not {name!r}")
    if split not in (None, *SPLITS):
        raise AVError(f"{path}: `split` is {split!r}, not one of {', '.join(SPLITS)}")
    levels = _levels(path, content.get("levels"))
    return Domain(
        name=name,
        levels=levels,
        description=content.get("description") or "",
        paraphrases=_paraphrases(path, content.get("paraphrases"), levels),
        prompts=_prompts(path, content.get("prompts"), levels),
        records=_source(path, content.get("records")),
        split=split,
        words=_words(path, content.get("words")),
    )


def _levels(path: Path, levels: object) -> dict[str, str]:
    pairs = list(levels.items()) if isinstance(levels, dict) else levels
    if not isinstance(pairs, list) or len(pairs) < 2:
        raise AVError(f"{path}: `levels` must name at least two levels, best first")
    if isinstance(levels, list):
        pairs = [(level, None) for level in levels]
    for level, text in pairs:
        # An unquoted yes, no, on or off is a truth value in YAML.
        if not isinstance(level, str) or not level.strip():
            raise AVError(f"{path}: the level {level!r} is no name; put quotes around it")
        if not isinstance(text, str | None):
            raise AVError(f"{path}: the level {level!r} must have a sentence, not {text!r}")
    if len(dict(pairs)) < len(pairs):
        raise AVError(f"{path}: a level stands twice under `levels`")
    return {level: text or "" for level, text in pairs}


def _paraphrases(path: Path, paraphrases: object, levels: dict[str, str]) -> dict[str, list[str]]:
    found = _by_level(path, "paraphrases", paraphrases, levels)
    for level, texts in found.items():
        if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
            raise AVError(
                f"{path}: the paraphrases of {level!r} must be a list of sentences, not {texts!r}"
            )
    return found


def _prompts(path: Path, prompts: object, levels: dict[str, str]) -> dict[str, str]:
    found = _by_level(path, "prompts", prompts, levels)
    for level, text in found.items():
        if not isinstance(text, str) or not text.strip():
            raise AVError(f"{path}: the prompt of {level!r} must be text, not {text!r}")
    return found


def _by_level(path: Path, key: str, values: object, levels: dict[str, str]) -> dict[str, Any]:
    """Return what stands under a key for each level, in the order of the levels."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise AVError(f"{path}: `{key}` must map levels to what is said of them")
    for level in values:
        if level not in levels:
            raise AVError(f"{path}: `{key}` has the level {level!r}; there are {', '.join(levels)}")
    return {level: values[level] for level in levels if level in values}


def _words(path: Path, words: object) -> dict[str, str]:
    if words is None:
        return {}
    if not isinstance(words, dict):
        raise AVError(f"{path}: `words` must map placeholders to what stands for them")
    for name, text in words.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise AVError(f"{path}: `words` has {name!r}, which is no name for a placeholder")
        if not isinstance(text, str) or not text.strip():
            raise AVError(f"{path}: the word {name!r} must be text, not {text!r}")
    return dict(words)


def _source(path: Path, records: str | None) -> str | None:
    """Return what `records` says, relative to the domain file, unless it is a Hub dataset id."""
    if records is None:
        return None
    beside = Path(os.path.normpath(path.absolute().parent / records))
    looks_local = beside.suffix in (".jsonl", ".json", ".parquet")
    return str(beside) if looks_local or beside.exists() else records
