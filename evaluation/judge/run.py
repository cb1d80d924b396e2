"""From a model to judged answers."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import Record
from mergekit_av.evaluation.tasks import Task, make_task
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.generation import Answer, write_answers

from .judge import Item, Judge
from .tally import Judged

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def judge_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    fingerprint: str,
    domain: Domain,
    records: Sequence[Record],
    judge: Judge,
    *,
    split: str,
    sample: int,
    decoding: Decoding,
) -> Judged:
    """Judged generation accuracy (section "Metrics" of the paper), with the same judge's agreement
    with the known levels of the sampled records' own responses.

    Args:
        fingerprint: of the model, under which its answers are kept.
        sample: so many records at most, drawn by their ids.
        decoding: how the model answers.

    Raises:
        AVError: no record fits the context, or see `Judge.judge`.
    """
    mixed = sorted(records, key=lambda record: hashlib.sha256(record.id.encode()).digest())
    task = make_task(
        model, tokenizer, domain, mixed, split, limit=sample, new_tokens=decoding.max_new_tokens
    )
    answers = _answers(model, tokenizer, fingerprint, task, judge, decoding)
    written = [Item(record.id, record.query, answers[record.id].text) for record in task.records]
    known = [
        Item(record.id, record.query, text, level)
        for record in task.records
        for level, text in record.responses.items()
    ]
    verdicts = judge.judge([*written, *known], domain)
    levels = list(domain.levels)
    return Judged.of(domain.name, split, levels, verdicts[: len(written)], verdicts[len(written) :])


def _answers(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", fingerprint: str, task: Task,
    judge: Judge, decoding: Decoding,
) -> dict[str, Answer]:  # fmt: skip
    key = {
        "answers_of": fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "domain": task.name,
        "split": task.split,
        "tokens": task.digest,
        **task.answers_key(),
        **decoding.key(),
    }
    if key not in judge.store:
        answers = write_answers(model, tokenizer, task.records, decoding)
        judge.store.put(key, {id: asdict(answer) for id, answer in answers.items()})
    return {id: Answer(**answer) for id, answer in judge.store.get(key).items()}
