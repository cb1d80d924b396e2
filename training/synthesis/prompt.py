"""The prompts of synthesis: text files with placeholders like `{persona}`, to be edited."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from mergekit_av.domains import Domain
from mergekit_av.errors import AVError
from mergekit_av.files import write_whole

SHIPPED = Path(__file__).parent / "prompts"
PLACEHOLDER = re.compile(r"\{(\w+)\}")
# Of each prompt: what it may have beside the words of the domain, and what it cannot do without.
OWN = {
    "roots": ("count", "avoid"),
    "expand": ("count", "persona", "query"),
    "query": ("persona",),
    "response": ("query", "persona", "level", "definition", "instruction", "paragraphs"),
}
NEEDED = {"roots": "count", "expand": "persona", "query": "persona", "response": "query"}


def words_of(domain: Domain) -> dict[str, str]:
    """Placeholder → what stands for it, for every prompt of a domain."""
    field = domain.name.replace("-", " ").replace("_", " ")
    return {
        "domain": domain.name,
        "description": domain.description or field,
        "domain_lingo": field,
        "domain_expert": f"somebody who knows about {field}",
        "solution_lingo": "an answer",
        **domain.words,
    }


def copy_prompts(folder: Path) -> None:
    """Put those of the package that are missing into a folder."""
    for name in OWN:
        if not (folder / f"{name}.txt").exists():
            write_whole(folder / f"{name}.txt", (SHIPPED / f"{name}.txt").read_text("utf-8"))


class Prompt:
    """A prompt for a domain.

    Attributes:
        file: where it is.
        fingerprint: of its text and of the domain's words in it.

    Raises:
        AVError: the file cannot be read, has a placeholder that nothing stands for, or lacks the one
            without which it asks everybody the same.
    """

    def __init__(self, folder: Path, name: str, domain: Domain):
        self.file = folder / f"{name}.txt"
        try:
            text = self.file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise AVError(f"cannot read the prompt {self.file}: {reason}") from error
        words, found = words_of(domain), PLACEHOLDER.findall(text)
        known = [*OWN[name], *words]
        for placeholder in found:
            if placeholder not in known:
                raise AVError(
                    f"{self.file} has the placeholder {{{placeholder}}}, which nothing stands for: "
                    f"known are {', '.join(known)}; more can be put under `words` of the domain"
                )
        if NEEDED[name] not in found:
            raise AVError(f"{self.file} lacks the placeholder {{{NEEDED[name]}}}")
        own = {key: word for key, word in words.items() if key not in OWN[name]}
        self._text = _filled(text, own)
        self.fingerprint = hashlib.sha256(self._text.encode()).hexdigest()[:12]

    def __len__(self) -> int:
        """Characters of the text, without what is filled in."""
        return len(self._text)

    def fill(self, **values: object) -> str:
        """The prompt with all that belongs in it."""
        return _filled(self._text, values)


def _filled(text: str, values: Mapping[str, object]) -> str:
    """In one pass: a placeholder in a persona or a query is nothing but text."""
    return PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), text)
