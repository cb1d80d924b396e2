"""Tasks: one split of a domain's records, as they fit a model's context."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import Record
from mergekit_av.errors import AVError
from mergekit_av.models.chat import encode, generation_prompt
from mergekit_av.models.scoring import context_length

from .accuracy import choose


@dataclass(frozen=True)
class Task:
    """The records of one split of one domain that are scored, or answered, at a setting.

    Attributes:
        records: those that are scored, or answered.
        too_long: ids of those that do not fit the model's context.
        equal: ids of those of which two levels have the same response.
        digest: of the tokens: of the records, the chat template and the tokenizer at once.
        prompts: digest of the prompts that answers are written from, where `digest` does not decide
            them.
        prompt: the level that an instruction before the query asks for; None without instruction.
    """

    domain: Domain
    split: str
    records: tuple[Record, ...]
    too_long: tuple[str, ...]
    digest: str
    prompt: str | None = None
    equal: tuple[str, ...] = ()
    prompts: str | None = None

    @property
    def name(self) -> str:
        return self.domain.name

    def key(self) -> dict[str, str | None]:
        """Return what a store's key says of the records."""
        return {
            "domain": self.name,
            "split": self.split,
            "prompt": self.prompt,
            "tokens": self.digest,
        }

    def answers_key(self) -> dict[str, str]:
        """Return what a store's key of answers has beside: nothing where `digest` decides them."""
        return {"prompts": self.prompts} if self.prompts else {}


def make_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
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
    fitting, too_long, equal = choose(model, tokenizer, domain, records, split)
    if new_tokens and (context := context_length(model)) is not None:
        room = context - new_tokens
        fitting = [r for r in fitting if len(generation_prompt(tokenizer, r.prompt)) <= room]
        if not fitting:
            raise AVError(
                f"{domain.name}: no query leaves room for an answer of {new_tokens} tokens in the "
                f"context of {context}: allow fewer (--max-new-tokens)"
            )
    fitting = fitting[:limit]
    prompts = _prompts(tokenizer, fitting) if new_tokens else None
    digest = hashlib.sha256()
    for record in fitting:
        tokens = encode(tokenizer, record.prompt, list(record.responses.values()))
        digest.update(json.dumps([record.id, list(record.responses), *tokens]).encode())
    return Task(
        domain,
        split,
        records=tuple(fitting),
        too_long=tuple(too_long),
        digest=digest.hexdigest()[:32],
        prompt=prompt,
        equal=tuple(equal),
        prompts=prompts,
    )


def _prompts(tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]) -> str | None:
    """Return a digest of whole prompts; None where each is what stands before its record's responses, and
    before an empty one: there answers have always been written from the whole prompt."""
    whole = [generation_prompt(tokenizer, record.prompt) for record in records]
    try:
        decided = all(
            encode(tokenizer, record.prompt, responses)[0] == prompt
            for prompt, record in zip(whole, records, strict=True)
            for responses in (list(record.responses.values()), [""])
        )
    except AVError:  # a chat template may refuse an empty response
        decided = False
    return None if decided else hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:32]


def asking_for(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, level: str
) -> Task:
    """Return the task with each query preceded by the domain's instruction that asks for a level.

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
    asked = f"{instruction}\n\n{record.query}"
    if isinstance(record.prompt, str):
        return replace(record, prompt=asked)
    *before, last = record.prompt
    return replace(record, prompt=(*before, {**last, "content": asked}))
