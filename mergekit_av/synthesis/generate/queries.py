"""The queries that personas ask."""

from mergekit_av.endpoints.client import Completion
from mergekit_av.synthesis.folder import QUERIES, Persona, id_of
from mergekit_av.synthesis.stage import CostEstimate, Generator, tokens_in

# Tokens of a query: about so many, and never more.
TYPICAL, MOST = 110, 400
PERSONA = 150  # characters
QUOTES = "\"“”'"


class QueryStage:
    """Make the queries.

    Args:
        count: the most queries; None for one of every persona.
    """

    def __init__(self, generator: Generator, count: int | None = None):
        self.generator, self.count = generator, count
        self.prompt = generator.folder.prompt("query")

    def estimate(self, more: int = 0) -> CostEstimate:
        """Estimate the cost of what is not there yet.

        Args:
            more: personas without a query that are still to come.
        """
        calls = more + sum(persona.query is None for persona in self._missing())
        read = tokens_in(len(self.prompt.text) + PERSONA)
        return CostEstimate(calls, calls * read, calls * TYPICAL)

    def make(self) -> int:
        """Ask for the queries that are missing; return how many there are.

        Raises:
            AVError: see `Completions.run`.
        """
        with self.generator.open_journal(QUERIES, [self.prompt]) as journal:
            missing = self._missing()
            # Who was created with a query needs no other.
            journal.append(*(_entry(p, p.query, None) for p in missing if p.query is not None))
            asked = [persona for persona in missing if persona.query is None]

            def keep(persona: Persona, completion: Completion) -> None:
                made = self.generator.provenance(completion, self.prompt)
                journal.append(_entry(persona, _unquoted(completion.text), made))

            done = len(self.generator.folder.queries())
            self.generator.client.run(
                asked,
                self._ask,
                keep,
                total=done + len(asked),
                done=done,
                desc="Queries",
                unit="query",
            )
        return len(self.generator.folder.queries())

    def _missing(self) -> list[Persona]:
        folder = self.generator.folder
        there = {query.persona.id for query in folder.queries()}
        missing = [persona for persona in folder.personas() if persona.id not in there]
        return missing if self.count is None else missing[: max(0, self.count - len(there))]

    async def _ask(self, persona: Persona) -> Completion:
        text = self.prompt.fill(persona=persona.persona)
        return await self.generator.client.complete(
            [{"role": "user", "content": text}],
            max_tokens=self.generator.max_tokens(MOST),
            seed=self.generator.draw(QUERIES, persona.id),
        )


def _entry(persona: Persona, query: str, made: dict | None) -> dict:
    return {"id": id_of(persona.id, query), "persona_id": persona.id, "query": query, "made": made}


def _unquoted(text: str) -> str:
    """Return a query on one line, without the quotation marks that models like to put around it."""
    line = " ".join(text.split())
    quoted = len(line) > 1 and line[0] in QUOTES and line[-1] in QUOTES
    return line[1:-1].strip() if quoted else line
