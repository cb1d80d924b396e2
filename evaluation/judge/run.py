"""Judged generation accuracy of a model."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import Record
from mergekit_av.evaluation.tasks import Task, make_task
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.generation import Answer, write_answers

from .judge import Judge, Response
from .tally import JudgeResult


def judge_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    domain: Domain,
    records: Sequence[Record],
    judge: Judge,
    *,
    split: str,
    sample: int,
    decoding: Decoding,
) -> JudgeResult:
    """Measure judged generation accuracy (section "Metrics" of the paper), with the same judge's agreement
    with the known levels of the sampled records' own responses.

    Args:
        fingerprint: of the model, under which its answers are kept.
        sample: so many records at most, drawn by their ids.
        decoding: how the model answers.

    Raises:
        AVError: no record fits the context, or see `Judge.judge`.
    """
    shuffled = sorted(records, key=lambda record: hashlib.sha256(record.id.encode()).digest())
    task = make_task(
        model, tokenizer, domain, shuffled, split, limit=sample, new_tokens=decoding.max_new_tokens
    )
    answers = _answers(model, tokenizer, fingerprint, task, judge, decoding)
    answered, known = [], []
    for record in task.records:
        answered.append(Response(record.id, record.query, answers[record.id].text))
        for level, text in record.responses.items():
            known.append(Response(record.id, record.query, text, level))
    verdicts = judge.judge([*answered, *known], domain)
    of_answers, of_known = verdicts[: len(answered)], verdicts[len(answered) :]
    return JudgeResult.of(domain, split, of_answers, of_known)


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    task: Task,
    judge: Judge,
    decoding: Decoding,
) -> dict[str, Answer]:
    """Answer the records' queries, or read the answers that the judge's store keeps."""
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
