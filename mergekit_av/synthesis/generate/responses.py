"""The responses: to each query one at each level.

Responses grow with the level where their length is left to the model. So the number of paragraphs is
drawn for each query and level, from the same numbers at every level.
"""

from dataclasses import dataclass

from mergekit_av.endpoints.client import Completion
from mergekit_av.synthesis.folder import RESPONSES, Query
from mergekit_av.synthesis.stage import Estimate, Maker, tokens_in

PARAGRAPHS = ("one paragraph", "two paragraphs", "three paragraphs")
# Tokens of a paragraph: about so many, and never more.
TYPICAL, MOST = 70, 300
QUERY = 450  # characters


@dataclass(frozen=True)
class Item:
    """A response that is to be made, of so many paragraphs."""

    query: Query
    level: str
    paragraphs: int


class Answering:
    """The stage that makes the responses."""

    def __init__(self, maker: Maker):
        self.maker = maker
        self.prompt = maker.folder.prompt("response")
        self.domain = maker.folder.domain

    def estimate(self, more: int = 0) -> Estimate:
        """Of what is not there yet.

        Args:
            more: queries that are still to come.
        """
        calls = len(self._todo()) + more * len(self.domain.levels)
        said = [self.instruction(level) + self.domain.levels[level] for level in self.domain.levels]
        said = sum(map(len, said)) // len(said)
        read = tokens_in(len(self.prompt.text) + said + QUERY)
        written = TYPICAL * sum(range(1, len(PARAGRAPHS) + 1)) // len(PARAGRAPHS)
        return Estimate(calls, calls * read, calls * written)

    def make(self) -> int:
        """Ask for the responses that are missing; return how many there are.

        Raises:
            AVError: see `Completions.run`.
        """
        domain = self.domain
        levels = {level: [text, self.instruction(level)] for level, text in domain.levels.items()}
        with self.maker.open(RESPONSES, [self.prompt], levels=levels) as journal:

            def keep(item: Item, completion: Completion) -> None:
                entry = {
                    "query_id": item.query.id,
                    "level": item.level,
                    "paragraphs": item.paragraphs,
                    "text": completion.text,
                    "made": self.maker.made(completion, self.prompt),
                }
                journal.append(entry)

            todo = self._todo()
            total = len(self.maker.folder.queries()) * len(domain.levels)
            self.maker.client.run(
                todo, self._ask, keep, total=total, done=total - len(todo), desc="Responses",
                unit="response",
            )  # fmt: skip
        return total

    def instruction(self, level: str) -> str:
        """What asks for a level: the domain's own words, or what it says of the level."""
        wanted = self.domain.prompts.get(level)
        return wanted or f"Answer the following question at the level “{level}”."

    def _todo(self) -> list[Item]:
        there = self.maker.folder.responses()
        return [
            Item(query, level, 1 + self.maker.draw("paragraphs", query.id, level) % len(PARAGRAPHS))
            for query in self.maker.folder.queries()
            for level in self.domain.levels
            if query.query and level not in there.get(query.id, {})
        ]

    async def _ask(self, item: Item) -> Completion:
        text = self.prompt.fill(
            query=item.query.query,
            persona=item.query.persona.persona,
            level=item.level,
            definition=self.domain.levels[item.level] or item.level,
            instruction=self.instruction(item.level),
            paragraphs=PARAGRAPHS[item.paragraphs - 1],
        )
        return await self.maker.client.complete(
            [{"role": "user", "content": text}],
            max_tokens=self.maker.limit(MOST * item.paragraphs),
            seed=self.maker.draw(RESPONSES, item.query.id, item.level),
        )
