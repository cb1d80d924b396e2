"""CreatePersona: from a few very different people to many, by asking for their relations.

After the paper: root persona-query pairs, each expanded by asking for closely or remotely related
personas with their queries, recursively; all of it repeated with other roots.
"""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

from mergekit_av.endpoints.client import Completion, InvalidOutput
from mergekit_av.errors import AVError
from mergekit_av.synthesis.folder import CREATED, id_of
from mergekit_av.synthesis.stage import CostEstimate, Generator, tokens_in

from .tree import Expansion, PersonaTree, TreeShape

# Tokens of a persona with its query: about so many, and never more.
TYPICAL, MOST = 130, 400
# Characters of a persona, and of the schema in words.
PERSONA, SCHEMA = 150, 500
BULLET = re.compile(r"^\s*(?:[-*•]|\(?(?:\d+|[A-Za-z])[.):])\s+")
WORD = re.compile(r"[^\W\d_]{2}")
PLAIN = (
    "\n\nWrite the people only, without their questions: one person a line, one sentence each, and "
    "nothing else."
)
NOBODY = "(nobody yet)"


class PersonaQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    persona: str
    query: str


class People(BaseModel):
    model_config = ConfigDict(extra="forbid")
    people: list[PersonaQuery]


class PersonaStage:
    """Create personas.

    Args:
        count: the most personas; None for a whole tree.
        plain: ask for lines of text rather than JSON, and leave the queries to their own stage: for
            models that keep to no schema.
    """

    def __init__(
        self, generator: Generator, shape: TreeShape, count: int | None = None, plain: bool = False
    ):
        self.generator, self.shape, self.plain = generator, shape, plain
        self.count = shape.size() if count is None else count
        self.prompts = {name: generator.folder.prompt(name) for name in ("roots", "expand")}

    def missing(self) -> int:
        """Return the number of personas that are not there yet."""
        return self._tree(self.generator.folder.entries(CREATED)).missing

    def estimate(self) -> CostEstimate:
        """Estimate the cost of what is not there yet."""
        missing = self.missing()
        calls = -(-missing // self.shape.children)
        form = len(PLAIN) if self.plain else SCHEMA
        read = tokens_in(len(self.prompts["expand"].text) + PERSONA + form)
        written = tokens_in(PERSONA) if self.plain else TYPICAL
        return CostEstimate(calls, calls * read, missing * written)

    def make(self) -> int:
        """Ask until there are enough personas, or none is left to be expanded; return their number.

        Raises:
            AVError: see `Completions.run`; the model keeps to no schema.
        """
        settings = {"roots": self.shape.roots, "children": self.shape.children, "plain": self.plain}
        with self.generator.open_journal(
            CREATED, list(self.prompts.values()), **settings
        ) as journal:
            tree = self._tree(journal.entries)
            tried: set[str] = set()
            while tree.missing and (wave := tree.next(tried)):
                tried |= {expansion.id for expansion in wave}
                self._ask_for(wave, tree, journal)
        return len(tree.nodes)

    def _tree(self, entries: list[dict[str, Any]]) -> PersonaTree:
        return PersonaTree(self.shape, self.count, entries)

    def _ask_for(self, wave: list[Expansion], tree: PersonaTree, journal) -> None:
        invalid: list[str] = []

        async def work(expansion: Expansion) -> tuple[list[dict[str, Any]], Completion]:
            try:
                return await self._people(expansion, tree)
            except InvalidOutput as error:
                invalid.append(error.message)
                return [], error.completion

        def keep(expansion: Expansion, result: tuple[list[dict[str, Any]], Completion]) -> None:
            people, completion = result
            new = {id_of(one["persona"]): one for one in people}
            entry = {
                "id": expansion.id,
                "round": expansion.round,
                "depth": expansion.depth,
                "parent": expansion.parent.id if expansion.parent else None,
                "personas": [one for id, one in new.items() if id not in tree.nodes],
                "made": self.generator.provenance(completion, self._prompt(expansion)),
            }
            journal.append(entry)
            tree.add(entry)

        desc = f"Personas {len(tree.nodes):,}/{self.count:,}"
        self.generator.client.run(wave, work, keep, total=len(wave), desc=desc, unit="expansion")
        if len(invalid) == len(wave):
            remedy = "" if self.plain else ", or pass --plain, which asks for lines of text instead"
            raise AVError(invalid[0] + remedy)

    def _prompt(self, expansion: Expansion):
        return self.prompts["expand" if expansion.parent else "roots"]

    async def _people(
        self, expansion: Expansion, tree: PersonaTree
    ) -> tuple[list[dict[str, Any]], Completion]:
        if (parent := expansion.parent) is not None:
            values = {"persona": parent.persona, "query": parent.query or ""}
        else:
            values = {"avoid": "\n".join(node.persona for node in tree.roots()) or NOBODY}
        text = self._prompt(expansion).fill(count=expansion.count, **values)
        client = self.generator.client
        how = {
            "max_tokens": self.generator.max_tokens(MOST * expansion.count),
            "seed": self.generator.draw(CREATED, expansion.id, tree.tries[expansion.id]),
        }
        if not self.plain:
            messages = [{"role": "user", "content": text}]
            answer, completion = await client.structured(messages, People, **how)
            people = [(one.persona, one.query.strip() or None) for one in answer.people]
        else:
            completion = await client.complete([{"role": "user", "content": text + PLAIN}], **how)
            people = [(line, None) for line in _lines(completion)]
        found = [{"persona": " ".join(p.split()), "query": q} for p, q in people if p.strip()]
        if not found:
            raise InvalidOutput(f"{client.endpoint.model} has named no people", completion)
        return found[: expansion.count], completion


def _lines(completion: Completion) -> list[str]:
    """Return the lines of a list, without what they are numbered with, what announces them, and the last one
    where it was cut off."""
    lines = completion.text.splitlines()
    if completion.finish_reason == "length" and len(lines) > 1:
        lines.pop()
    found = [BULLET.sub("", line).strip() for line in lines]
    return [line for line in found if WORD.search(line) and not line.endswith(":")]
