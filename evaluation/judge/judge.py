"""The judge, the paper's second metric: a language model says at which level responses are.

Its labels are worth what its agreement with known levels is, which is measured beside them.
"""

import contextlib
import hashlib
import math
import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_av.data.domain import Domain
from mergekit_av.endpoints.client import Completion, Completions, connect
from mergekit_av.endpoints.config import ClientConfig
from mergekit_av.evaluation.measure.store import Store
from mergekit_av.text.template import Template

RUBRIC = Path(__file__).parent / "rubric.txt"
PLACEHOLDERS = ("description", "query", "answer", "options", "letters")
NEEDED = ("query", "answer", "options")
# What models that think aloud put before their answer, where the server leaves it in.
THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
# A letter, and at most punctuation and emphasis around it: "B", "(B)", "**B**.".
LETTER = re.compile(r"[\W_]*([A-Z])[\W_]*")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Configure a judge.

    Attributes:
        client: of the model that judges; it is asked at temperature 0.
        sample: so many answers in each domain, at most.
        repeats: judgements of each response.
        max_tokens: of a judgement, with what the judge thinks.
        rubric: what the judge is told, a text with the placeholders of `PLACEHOLDERS`.
        store: the file that keeps answers and judgements.
    """

    client: ClientConfig
    sample: int = 20
    repeats: int = 1
    max_tokens: int = 512
    rubric: Path = RUBRIC
    store: Path = Path("runs/judgements.jsonl")

    @contextlib.contextmanager
    def open(self) -> Iterator["Judge"]:
        """Open the judge and its store.

        Raises:
            UsageError: no model is named.
            AVError: its key is missing, the rubric is wrong, or another process has the store.
        """
        client = connect(self.client, temperature=0.0)
        rubric = Template(self.rubric, PLACEHOLDERS, NEEDED)
        with Store(self.store) as store:
            yield Judge(client, rubric, store, repeats=self.repeats, max_tokens=self.max_tokens)


@dataclass(frozen=True)
class Response:
    """A response to be labelled.

    Attributes:
        id: of its record.
        level: the level that it was written for; None where a model wrote it.
    """

    id: str
    query: str
    text: str
    level: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The labels that a judge gives a response.

    Attributes:
        labels: of each repeat; None where the reply was no label.
        cut_off: replies that ran out of tokens.
    """

    response: Response
    labels: tuple[str | None, ...]
    cut_off: int = 0

    @property
    def label(self) -> str | None:
        """Label of most repeats; None where there is none, or two share the first place."""
        ranked = Counter(label for label in self.labels if label).most_common(2)
        if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
            return None
        return ranked[0][0]

    @property
    def disputed(self) -> bool:
        """Whether repeats have different labels."""
        return len({label for label in self.labels if label}) > 1


@dataclass(frozen=True)
class _Option:
    """A level as it is shown to a judge."""

    letter: str
    level: str
    wording: str


@dataclass(frozen=True)
class _Question:
    """One question to a judge.

    Attributes:
        options: in the order in which they are shown.
    """

    prompt: str
    options: tuple[_Option, ...]

    def label(self, reply: str) -> str | None:
        """Return the level that a reply names; None where it is anything but one of the letters."""
        found = LETTER.fullmatch(THOUGHTS.sub("", reply).strip())
        levels = {option.letter: option.level for option in self.options}
        return levels.get(found[1]) if found else None


class Judge:
    """Label responses with a model and a rubric.

    The levels are shown as lettered options. Their order, their letters, and their wording, where the
    domain has paraphrases, are drawn for each response and repeat, so that a preference for a place or a
    letter cancels out instead of making a level, and no single phrase decides.

    Args:
        rubric: has the placeholders of `PLACEHOLDERS`.
        store: keeps every reply; none is paid for twice.
        repeats: judgements of each response.
        max_tokens: of a reply, with what the judge thinks.
    """

    def __init__(
        self, client: Completions, rubric: Template, store: Store, *, repeats: int, max_tokens: int
    ):
        self.client, self.rubric, self.store = client, rubric, store
        self.repeats, self.max_tokens = repeats, max_tokens

    def judge(self, responses: Sequence[Response], domain: Domain) -> list[Verdict]:
        """Label each response.

        Raises:
            AVError: the endpoint fails for good, or the budget is spent; what was judged is kept.
        """
        asked = {response: self._questions(response, domain) for response in responses}
        # The same answer to the same query is the same question.
        every = {question.prompt: question for some in asked.values() for question in some}
        missing = [question for question in every.values() if self._key(question) not in self.store]

        async def ask(question: _Question) -> Completion:
            messages = [{"role": "user", "content": question.prompt}]
            return await self.client.complete(messages, max_tokens=self.max_tokens)

        def keep(question: _Question, reply: Completion) -> None:
            value = {"text": reply.text, "finish_reason": reply.finish_reason}
            self.store.put(self._key(question), value)

        self.client.run(
            missing,
            ask,
            keep,
            total=len(every),
            done=len(every) - len(missing),
            desc=f"Judging {domain.name}",
            unit="judgement",
        )
        return [self._verdict(response, questions) for response, questions in asked.items()]

    def as_json(self) -> dict[str, Any]:
        """Return how it judges, and what it has cost since it was made."""
        return {
            "model": self.client.endpoint.model,
            "rubric": self.rubric.fingerprint,
            "repeats": self.repeats,
            "max_tokens": self.max_tokens,
            "spent": self.client.spending.now.as_json(),
        }

    def _questions(self, response: Response, domain: Domain) -> list[_Question]:
        draw = random.Random("\0".join([response.query, response.text, *domain.levels]))
        return [
            _Question(
                self.rubric.fill(
                    description=domain.description or domain.name,
                    query=response.query,
                    answer=response.text or "(The answer is empty.)",
                    options="\n".join(f"{option.letter}) {option.wording}" for option in options),
                    letters=_either(sorted(option.letter for option in options)),
                ),
                options,
            )
            for options in _arrangements(domain, self.repeats, draw)
        ]

    def _verdict(self, response: Response, questions: Sequence[_Question]) -> Verdict:
        replies = [self.store.get(self._key(question)) for question in questions]
        pairs = zip(questions, replies, strict=True)
        labels = tuple(question.label(reply["text"]) for question, reply in pairs)
        return Verdict(response, labels, sum(r["finish_reason"] == "length" for r in replies))

    def _key(self, question: _Question) -> dict[str, Any]:
        return {
            "judge": self.client.endpoint.model,
            "temperature": self.client.temperature,
            "max_tokens": self.max_tokens,
            "prompt": hashlib.sha256(question.prompt.encode(errors="replace")).hexdigest(),
        }


def _arrangements(domain: Domain, count: int, draw: random.Random) -> list[tuple[_Option, ...]]:
    """Draw so many ways to show levels as options, each once while there are others."""
    levels = list(domain.levels)
    letters = string.ascii_uppercase[: len(levels)]
    found: list[tuple[_Option, ...]] = []
    ways = math.factorial(len(levels)) ** 2
    ways *= math.prod(len(domain.wordings(level)) for level in levels)
    while len(found) < count:
        order = draw.sample(levels, len(levels))
        shown = zip(draw.sample(letters, len(levels)), order, strict=True)
        options = tuple(
            _Option(letter, level, draw.choice(domain.wordings(level))) for letter, level in shown
        )
        if options not in found or len(found) >= ways:
            found.append(options)
    return found


def _either(words: Iterable[str]) -> str:
    *before, last = words
    return f"{', '.join(before)} or {last}"
