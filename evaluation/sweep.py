"""The λ sweep: what a model prefers, and how it writes, at every λ of one or several vectors."""

import contextlib
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
from mergekit_av.logprobs import mean_log_probs
from mergekit_av.records import Record

from .accuracy import Result, choose, summarise
from .answers import Answer, greedy_answers
from .fluency import Fluency, fluency
from .store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def parse_lambdas(text: str) -> list[float]:
    """`low:high:step`, `low:high` (the paper's step, 0.1), or values separated by commas.

    Raises:
        AVError: not numbers, an empty or reversed range, a step that is not positive.
    """
    try:  # decimal, so that -1.5 + 12 · 0.1 is -0.3 and not -0.30000000000000004
        parts = [Decimal(part) for part in text.replace(",", ":").split(":")]
    except InvalidOperation:
        parts = []
    if not parts or not all(part.is_finite() for part in parts):
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
    return [float(low + i * step) for i in range(math.floor((high - low) / step) + 1)]


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
    limit: int | None = None,
    prompt: str | None = None,
) -> Task:
    """Choose a task's records, at most `limit` of them; with `prompt`, a level, each query is
    preceded by the instruction that asks for it.

    Raises:
        AVError: no record is left.
    """
    if prompt is not None:
        records = [_with_instruction(record, domain.prompts[prompt]) for record in records]
    fitting, too_long = choose(model, tokenizer, domain, records, split)
    fitting = fitting[:limit]
    digest = hashlib.sha256()
    for record in fitting:
        tokens = encode(tokenizer, record.prompt, list(record.responses.values()))
        digest.update(json.dumps([record.id, list(record.responses), *tokens]).encode())
    return Task(domain, split, tuple(fitting), tuple(too_long), digest.hexdigest()[:32], prompt)


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

    The search uses it as well: whatever was measured once is read back.
    """

    def __init__(
        self, knobs: Knobs, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase",
        base: str, store: Store,
    ):  # fmt: skip
        self.knobs, self.model, self.tokenizer, self.store = knobs, model, tokenizer, store
        self._base = base

    def result(self, lambdas: Mapping[str, float], task: Task) -> Result:
        """Preference accuracies at a setting."""

        def measure() -> list[list[float]]:
            with self._at(lambdas) as model:
                return mean_log_probs(model, self.tokenizer, task.records).tolist()

        scores = self._kept(self._key(lambdas, task), measure)
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
                seen = fluency(base, self.tokenizer, task.records, answers)
            return {
                "answers": {id: asdict(answer) for id, answer in answers.items()},
                "fluency": asdict(seen),
            }

        kept = self._kept(self._key(lambdas, task, max_new_tokens=max_new_tokens), measure)
        answers = {id: Answer(**answer) for id, answer in kept["answers"].items()}
        return answers, Fluency(**kept["fluency"])

    def _at(self, lambdas: Mapping[str, float]):
        """The model at a setting; vectors that are not named are at 0."""
        return self.knobs.at({**dict.fromkeys(self.knobs.vectors, 0.0), **lambdas})

    def _kept(self, key: dict[str, Any], measure: Callable[[], Any]) -> Any:
        if self.store.get(key) is None:
            self.store.put(key, measure())
        return self.store.get(key)

    def _key(self, lambdas: Mapping[str, float], task: Task, **more: Any) -> dict[str, Any]:
        # λ = 0 adds nothing, so that the base is measured once for all vectors.
        vectors = [
            [self.knobs.vectors[name].metadata.fingerprint, value]
            for name, value in lambdas.items()
            if value
        ]
        return {
            "base": self._base,
            "vectors": vectors,
            "rounding": self.knobs.rounding if vectors else None,
            "seed": self.knobs.seed if vectors else None,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "domain": task.name,
            "split": task.split,
            "prompt": task.prompt,
            "tokens": task.digest,
            **more,
        }


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
    count = len(ordered) * (len(tasks) + (written is not None))
    with tqdm(total=count, desc=f"Sweeping {vector}", unit="evaluation") as bar:
        for value in ordered:
            point = Point({vector: value})
            bar.set_postfix_str(f"λ = {value:g}")
            with _apart(bar):
                for task in tasks:
                    point.results[task.name, task.split] = evaluator.result(point.lambdas, task)
                    bar.update()
                if written is not None:
                    point.answers, point.fluency = evaluator.written(
                        point.lambdas, written, max_new_tokens
                    )
                    bar.update()
            yield point


@contextlib.contextmanager
def _apart(bar: tqdm) -> Iterator[None]:
    """End the bar's line before an error is shown."""
    try:
        yield
    except BaseException:
        bar.close()
        raise
