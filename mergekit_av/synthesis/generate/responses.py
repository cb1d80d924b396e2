"""The responses to each query, one at each level.

Responses grow with the level where their length is left to the model. So the number of paragraphs is
drawn for each query and level, from the same numbers at every level.
"""

from dataclasses import dataclass

from mergekit_av.endpoints.client import Completion
from mergekit_av.synthesis.folder import RESPONSES, Query
from mergekit_av.synthesis.stage import CostEstimate, Generator, tokens_in

PARAGRAPHS = ("one paragraph", "two paragraphs", "three paragraphs")
# Tokens of a paragraph: about so many, and never more.
TYPICAL, MOST = 70, 300
QUERY = 450  # characters


@dataclass(frozen=True)
class ResponseTask:
    """Describe a response that is to be made."""

    query: Query
    level: str
    paragraphs: int


class ResponseStage:
    """Make the responses."""

    def __init__(self, generator: Generator):
        self.generator = generator
        self.prompt = generator.folder.prompt("response")
        self.domain = generator.folder.domain

    def estimate(self, more: int = 0) -> CostEstimate:
        """Estimate the cost of what is not there yet.

        Args:
            more: queries that are still to come.
        """
        calls = len(self._missing()) + more * len(self.domain.levels)
        wordings = [self.instruction(level) + text for level, text in self.domain.levels.items()]
        wording = sum(map(len, wordings)) // len(wordings)
        read = tokens_in(len(self.prompt.text) + wording + QUERY)
        written = TYPICAL * sum(range(1, len(PARAGRAPHS) + 1)) // len(PARAGRAPHS)
        return CostEstimate(calls, calls * read, calls * written)

    def make(self) -> int:
        """Ask for the responses that are missing; return how many there are.

        Raises:
            AVError: see `Completions.run`.
        """
        domain = self.domain
        levels = {level: [text, self.instruction(level)] for level, text in domain.levels.items()}
        with self.generator.open_journal(RESPONSES, [self.prompt], levels=levels) as journal:

            def keep(task: ResponseTask, completion: Completion) -> None:
                entry = {
                    "query_id": task.query.id,
                    "level": task.level,
                    "paragraphs": task.paragraphs,
                    "text": completion.text,
                    "made": self.generator.provenance(completion, self.prompt),
                }
                journal.append(entry)

            missing = self._missing()
            total = len(self.generator.folder.queries()) * len(domain.levels)
            self.generator.client.run(
                missing,
                self._ask,
                keep,
                total=total,
                done=total - len(missing),
                desc="Responses",
                unit="response",
            )
        return total

    def instruction(self, level: str) -> str:
        """Return the instruction that asks for a level: the domain's own, or one that names it."""
        wanted = self.domain.prompts.get(level)
        return wanted or f"Answer the following question at the level “{level}”."

    def _missing(self) -> list[ResponseTask]:
        there = self.generator.folder.responses()
        return [
            ResponseTask(
                query,
                level,
                1 + self.generator.draw("paragraphs", query.id, level) % len(PARAGRAPHS),
            )
            for query in self.generator.folder.queries()
            for level in self.domain.levels
            if query.query and level not in there.get(query.id, {})
        ]

    async def _ask(self, task: ResponseTask) -> Completion:
        text = self.prompt.fill(
            query=task.query.query,
            persona=task.query.persona.persona,
            level=task.level,
            definition=self.domain.levels[task.level] or task.level,
            instruction=self.instruction(task.level),
            paragraphs=PARAGRAPHS[task.paragraphs - 1],
        )
        return await self.generator.client.complete(
            [{"role": "user", "content": text}],
            max_tokens=self.generator.max_tokens(MOST * task.paragraphs),
            seed=self.generator.draw(RESPONSES, task.query.id, task.level),
        )
