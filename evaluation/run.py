"""The whole of `av-eval`: from a model and domains to preference accuracies and judged answers."""

import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit_av.data.domain import Domain, built_in_domains, load_domain
from mergekit_av.data.records import load_records, require_splits
from mergekit_av.errors import UsageError
from mergekit_av.evaluation.judge.judge import JudgeConfig
from mergekit_av.evaluation.judge.run import judge_model
from mergekit_av.evaluation.judge.summary import judge_summary
from mergekit_av.evaluation.judge.tally import JudgeResult
from mergekit_av.hub.source import resolve
from mergekit_av.io.atomic import check_file, write_whole
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.models.chat import cut_notice, load_chat_tokenizer
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.default_base import base_or_default
from mergekit_av.models.generation import write_answers
from mergekit_av.models.load import load_model
from mergekit_av.provenance import versions

from .accuracy import Result, evaluate, left_out
from .inputs import refuse_same_names
from .rendering import accuracy_table, as_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Configure `run_eval`.

    Attributes:
        model: folder or Hub id; by default the default base.
        domains: names of built-in ones, or files; by default all whose records are built in.
        data: records instead of the domain's own, which must be the only one: a file or a Hub
            dataset id.
        split: train, validation or test.
        dtype, device: see `load_model`.
        answers: show the model's answers to so many records of each domain.
        decoding: how they are written, and those that are judged.
        judge: labels what the model answers; None for no judge.
        json_file: where the report is written; None for nowhere.
    """

    model: str | None = None
    domains: Sequence[str] = ()
    data: str | None = None
    split: str = "test"
    dtype: str = "float32"
    device: str | None = None
    answers: int = 0
    decoding: Decoding = field(default_factory=lambda: Decoding(256))
    judge: JudgeConfig | None = None
    json_file: Path | None = None


@dataclass
class EvalResult:
    """All that `av-eval` measures.

    Attributes:
        model: that was taken.
        fingerprint: of its weights; None where neither a report nor a judge needs it.
        dtype, device: that it computed in and on.
        results: preference accuracies, one a domain.
        answers: domain → record id → the model's answer.
        judged: one a domain; empty without a judge.
        judge: how it judged, and what that cost; None without a judge.
    """

    model: str
    fingerprint: str | None
    dtype: str
    device: str
    results: list[Result] = field(default_factory=list)
    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    judged: list[JudgeResult] = field(default_factory=list)
    judge: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the content of the report."""
        judged = {"domains": [one.as_json() for one in self.judged]}
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "device": self.device,
            # No merge takes part.
            "versions": {name: own for name, own in versions().items() if name != "mergekit"},
            "domains": [as_json(result) for result in self.results],
            "answers": self.answers,
            **({"judge": {**self.judge, **judged}} if self.judge else {}),
        }


def run_eval(
    config: EvalConfig, *, show: Callable[[str], object] = lambda text: None
) -> EvalResult:
    """Measure what a model prefers, and have a judge label what it answers.

        found = run_eval(EvalConfig(model="merged", domains=["medical"]))
        found.results[0].accuracy["expert"].value

    Args:
        show: called with each part of the results once it is known: the preference accuracies are
            not lost where the judge fails.

    Raises:
        UsageError: the configuration contradicts itself.
        AVError: an input cannot be read or does not fit, the judge fails, or the report cannot be
            written.
    """
    domains = _domains(config)
    if config.json_file:
        check_file(config.json_file)
    records = {domain.name: load_records(domain, config.data) for domain in domains}
    for name, some in records.items():
        require_splits(some, config.split, source=name)
    with config.judge.open() if config.judge else contextlib.nullcontext() as judge:
        source = base_or_default(config.model)
        model = load_model(source, dtype=config.dtype, device=config.device)
        tokenizer = load_chat_tokenizer(source)
        scored = [r for some in records.values() for r in some if r.split == config.split]
        if notice := cut_notice(tokenizer, scored):
            log.warning("%s", notice)
        found = EvalResult(
            source,
            fingerprint(Checkpoint(resolve(source))) if config.json_file or judge else None,
            str(model.dtype).removeprefix("torch."),
            str(model.device),
        )
        for domain in domains:
            some = records[domain.name]
            result = evaluate(model, tokenizer, domain, some, split=config.split)
            found.results.append(result)
            if config.answers:
                asked = [record for record in some if record.id in result.scores][: config.answers]
                answers = write_answers(model, tokenizer, asked, config.decoding)
                found.answers[domain.name] = {id: answer.text for id, answer in answers.items()}
        show(_accuracies(found, config.split))
        if judge and config.judge:
            known = found.fingerprint or fingerprint(Checkpoint(resolve(source)))
            found.judged = [
                judge_model(
                    model,
                    tokenizer,
                    known,
                    domain,
                    records[domain.name],
                    judge,
                    split=config.split,
                    sample=config.judge.sample,
                    decoding=config.decoding,
                )
                for domain in domains
            ]
            found.judge = judge.as_json()
            show(f"\njudged by {judge.client.endpoint.model}\n{judge_summary(found.judged)}")
    if config.json_file:
        report = json.dumps(found.as_json(), indent=2, allow_nan=False)
        write_whole(config.json_file, report + "\n")
    return found


def _domains(config: EvalConfig) -> list[Domain]:
    """Load the domains that are named, or those whose records come with the package."""
    if config.data and len(config.domains) != 1:
        raise UsageError("--data goes with exactly one --domain")
    named = [load_domain(name) for name in config.domains]
    refuse_same_names(named)
    return named or [
        domain
        for domain in map(load_domain, built_in_domains())
        if domain.records
        and Path(domain.records).is_file()
        and domain.split in (None, config.split)
    ]


def _accuracies(found: EvalResult, split: str) -> str:
    """Return preference accuracies and answers as text."""
    lines = [f"{found.model} ({found.dtype} on {found.device}), {split} records"]
    lines.append(accuracy_table(found.results))
    for result in found.results:
        lines += left_out(result.domain, result.too_long, result.equal)
    for name, answers in found.answers.items():
        lines += [f"\n{name}, {id}: {answer}" for id, answer in answers.items()]
    return "\n".join(lines)
