"""The prompts of synthesis: text files with placeholders like `{persona}`, to be edited."""

import hashlib
from pathlib import Path

from mergekit_av.data.domain import Domain
from mergekit_av.io.atomic import write_whole
from mergekit_av.text.template import Template

SHIPPED = Path(__file__).parent / "prompt_files"
# Prompt → placeholders that it may have beside the words of the domain; and the one that it needs.
OWN = {
    "roots": ("count", "avoid"),
    "expand": ("count", "persona", "query"),
    "query": ("persona",),
    "response": ("query", "persona", "level", "definition", "instruction", "paragraphs"),
}
NEEDED = {"roots": "count", "expand": "persona", "query": "persona", "response": "query"}


def words_of(domain: Domain) -> dict[str, str]:
    """Return placeholder → what stands for it, for every prompt of a domain."""
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


class Prompt(Template):
    """Hold a prompt for a domain, whose words are in it already.

    Attributes:
        fingerprint: of its text with those words.

    Raises:
        AVError: see `Template`; it lacks the placeholder without which it asks everybody the same.
    """

    def __init__(self, folder: Path, name: str, domain: Domain):
        words = words_of(domain)
        super().__init__(folder / f"{name}.txt", [*OWN[name], *words], [NEEDED[name]])
        self.text = self.fill(**{key: word for key, word in words.items() if key not in OWN[name]})
        self.fingerprint = hashlib.sha256(self.text.encode()).hexdigest()[:12]
