"""The λ sweep: what a model prefers, and how it writes, at every λ of one or several vectors."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from mergekit_av.chat import encode
from mergekit_av.domains import Domain
from mergekit_av.errors import AVError
from mergekit_av.knobs import Knobs
from mergekit_av.logprobs import context_length, mean_log_probs
from mergekit_av.records import Record

from .accuracy import Result, choose, summarise
from .answers import Answer, greedy_answers
from .fluency import Fluency, answers_log_prob, fluency
from .store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# More values than this are a mistake in the range.
MOST = 10_000


def parse_lambdas(text: str) -> list[float]:
    """`low:high:step`, `low:high` (the paper's step, 0.1), or values separated by commas.

    Returns:
        The values, rising, each once; `high` is among them where a step reaches it.

    Raises:
        AVError: not numbers, an empty or reversed range, a step that is not positive, or more
            than 10,000 values.
    """
    try:  # decimal, so that -1.5 + 12 · 0.1 is -0.3 and not -0.30000000000000004
        parts = [Decimal(part) for part in text.replace(",", ":").split(":")]
        finite = all(math.isfinite(part) for part in parts)
    except (InvalidOperation, ValueError):
        finite = False
    if not finite:
        raise AVError(f"λ must be like -1.5:1.5:0.1 or -1,0,0.5, not {text!r}")
    if ":" not in text:
        return sorted({float(part) for part in parts})
    if "," in text or len(parts) > 3:
        raise AVError(f"λ must be like -1.5:1.5:0.1 or -1,0,0.5, not {text!r}")
    low, high, step = (*parts, Decimal("0.1"))[:3]
    if step <= 0:
        raise AVError(f"the λ range {text} has the step {step}: it must be positive")
    if low > high:
        raise AVError(f"the λ range {text} is reversed: write {high}:{low}:{step}")
    if (steps := (high - low) / step) >= MOST:
        raise AVError(f"the λ range {text} has {steps:,.0f} values: take a larger step")
    return sorted({float(low + i * step) for i in range(math.floor(steps) + 1)})


@dataclass(frozen=True)
class Task:
    """One split of one domain, as it is scored at a setting.

    Attributes:
        records: those that fit the model's context.
        too_long: ids of the others.
        digest: of the tokens: of the records, the chat template and the tokenizer at once.
        prompt: the level that an instruction before the query asks for; None without instruction.
    """

    domain: Domain
    split: str
    records: tuple[Record, ...]
    too_long: tuple[str, ...]
    digest: str
    prompt: str | None = None

    @property
    def name(self) -> str:
        return self.domain.name


def make_task(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    domain: Domain,
    records: Sequence[Record],
    split: str,
    *,
    limit: int | None = None,
    new_tokens: int = 0,
    prompt: str | None = None,
) -> Task:
    """Choose a task's records.

    Args:
        limit: take so many of them at most.
        new_tokens: leave out those whose prompt has no room for so many in the context.
        prompt: the level that the records' prompts ask for.

    Raises:
        AVError: no record is left.
    """
    fitting, too_long = choose(model, tokenizer, domain, records, split)
    if new_tokens and (context := context_length(model)) is not None:
        room = context - new_tokens
        fitting = [r for r in fitting if len(encode(tokenizer, r.prompt, [""])[0]) <= room]
        if not fitting:
            raise AVError(
                f"{domain.name}: no query leaves room for an answer of {new_tokens} tokens in the "
                f"context of {context}: allow fewer (--max-new-tokens)"
            )
    fitting = fitting[:limit]
    digest = hashlib.sha256()
    for record in fitting:
        tokens = encode(tokenizer, record.prompt, list(record.responses.values()))
        digest.update(json.dumps([record.id, list(record.responses), *tokens]).encode())
    return Task(domain, split, tuple(fitting), tuple(too_long), digest.hexdigest()[:32], prompt)


def asking_for(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", task: Task, level: str
) -> Task:
    """The task with each query preceded by the domain's instruction that asks for a level.

    Raises:
        AVError: no record fits the context with it.
    """
    records = [_with_instruction(r, task.domain.prompts[level]) for r in task.records]
    try:
        return make_task(model, tokenizer, task.domain, records, task.split, prompt=level)
    except AVError as error:
        raise AVError(
            f"{error.message}, asked for {level!r}: leave that out (--no-prompting)"
        ) from None


def _with_instruction(record: Record, instruction: str) -> Record:
    if isinstance(record.prompt, str):
        prompt = f"{instruction}\n\n{record.prompt}"
    else:
        *before, last = record.prompt
        prompt = (*before, {**last, "content": f"{instruction}\n\n{last['content']}"})
    return Record(record.id, prompt, record.responses, record.split)


@dataclass
class Point:
    """What was measured at one setting.

    Attributes:
        lambdas: vector → λ.
        results: (domain, split) → preference accuracies.
        fluency: of the answers; None where none were generated.
        answers: record id → answer.
    """

    lambdas: dict[str, float]
    results: dict[tuple[str, str], Result] = field(default_factory=dict)
    fluency: Fluency | None = None
    answers: dict[str, Answer] = field(default_factory=dict)


class Evaluator:
    """Measures a model at settings of its knobs, keeping every evaluation in a store.

    Whatever was measured once is read back. Vectors that a setting does not name are at 0.

    Args:
        base: fingerprint of the base.
    """

    def __init__(
        self, knobs: Knobs, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase",
        base: str, store: Store,
    ):  # fmt: skip
        self.knobs, self.model, self.tokenizer = knobs, model, tokenizer
        self.base, self.store = base, store

    def holds(
        self, lambdas: Mapping[str, float], task: Task, max_new_tokens: int | None = None
    ) -> bool:
        """Whether a result, or with `max_new_tokens` what is written, is in the store already."""
        return self.store.get(self._key(lambdas, task, max_new_tokens)) is not None

    def result(self, lambdas: Mapping[str, float], task: Task) -> Result:
        """Preference accuracies at a setting."""

        def measure() -> list[list[float]]:
            with self._at(lambdas) as model:
                return mean_log_probs(model, self.tokenizer, task.records).tolist()

        scores = self._kept(self._key(lambdas, task, None), measure)
        ids = [record.id for record in task.records]
        return summarise(task.domain, task.split, ids, torch.tensor(scores), task.too_long)

    def written(
        self, lambdas: Mapping[str, float], task: Task, max_new_tokens: int
    ) -> tuple[dict[str, Answer], Fluency]:
        """Greedy answers at a setting to the task's prompts, and what the guard sees of them."""

        def measure() -> dict[str, Any]:
            with self._at(lambdas) as model:
                answers = greedy_answers(
                    model, self.tokenizer, task.records, max_new_tokens, progress=False
                )
            with self._at({}) as base:
                log_prob = answers_log_prob(base, self.tokenizer, task.records, answers)
            return {
                "answers": {id: asdict(answer) for id, answer in answers.items()},
                "log_prob": log_prob,
            }

        kept = self._kept(self._key(lambdas, task, max_new_tokens), measure)
        answers = {id: Answer(**answer) for id, answer in kept["answers"].items()}
        return answers, fluency(answers, kept["log_prob"])

    def _at(self, lambdas: Mapping[str, float]):
        return self.knobs.at({**dict.fromkeys(self.knobs.vectors, 0.0), **lambdas})

    def _kept(self, key: dict[str, Any], measure: Callable[[], Any]) -> Any:
        if self.store.get(key) is None:
            self.store.put(key, measure())
        return self.store.get(key)

    def _key(
        self, lambdas: Mapping[str, float], task: Task, max_new_tokens: int | None
    ) -> dict[str, Any]:
        # λ = 0 adds nothing, so that the base is measured once for all vectors. The order is that
        # in which the vectors are added.
        vectors = [
            [vector.metadata.fingerprint, float(lambdas[name])]
            for name, vector in self.knobs.vectors.items()
            if lambdas.get(name)
        ]
        key = {
            "base": self.base,
            "vectors": vectors,
            "rounding": self.knobs.rounding if vectors else None,
            "seed": self.knobs.seed if vectors else None,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "domain": task.name,
            "split": task.split,
            "prompt": task.prompt,
            "tokens": task.digest,
        }
        return key if max_new_tokens is None else {**key, "max_new_tokens": max_new_tokens}


def sweep(
    evaluator: Evaluator,
    vector: str,
    lambdas: Sequence[float],
    tasks: Sequence[Task],
    written: Task | None = None,
    max_new_tokens: int = 0,
) -> Iterator[Point]:
    """Move one vector's λ, the others at 0; at each measure every task, and what the model writes
    to `written`.

    Yields a point when all of it is measured, the smallest |λ| first. 0 is always among them:
    everything is compared with it. Nothing that the store holds is measured again.
    """
    ordered = sorted({0.0, *lambdas}, key=lambda value: (abs(value), value))
    # What is measured at each λ: preferences, and (with a number of new tokens) what it writes.
    plan: list[tuple[Task, int | None]] = [(task, None) for task in tasks]
    if written is not None:
        plan.append((written, max_new_tokens))
    kept = sum(evaluator.holds({vector: value}, *step) for value in ordered for step in plan)
    with tqdm(
        total=len(ordered) * len(plan), initial=kept, desc=f"Sweeping {vector}", unit="evaluation"
    ) as bar:
        for value in ordered:
            point = Point({vector: value})
            bar.set_postfix_str(f"λ = {value:g}")
            for task, new_tokens in plan:
                # The bar begins with what was kept: the time that is left is that of the others.
                new = not evaluator.holds(point.lambdas, task, new_tokens)
                if new_tokens is None:
                    point.results[task.name, task.split] = evaluator.result(point.lambdas, task)
                else:
                    point.answers, point.fluency = evaluator.written(
                        point.lambdas, task, new_tokens
                    )
                bar.update(new)
            yield point
