"""Preference accuracy: at which level is each record's most likely response?"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import Record
from mergekit_av.errors import AVError
from mergekit_av.models.scoring import (
    context_length,
    mean_log_probs,
    with_equal_responses,
    within_context,
)
from mergekit_av.stats import Estimate, mean_interval, votes, wilson
from mergekit_av.text.tables import aligned

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Result:
    """What a model prefers in one domain.

    Attributes:
        records: how many were scored.
        too_long: ids of those that were left out because a response exceeds the context.
        equal: ids of those that were left out because two levels have the same response.
        accuracy: level → share of the records that prefer it; the shares add up to 1. Wilson
            intervals. A record that prefers k levels alike counts 1/k for each.
        mean_log_prob: level → mean over the records, nats per token. Student's t intervals.
        dominant: the level with the highest accuracy, where that is above 1 / number of levels and
            no other level shares it.
        scores: record id → mean log-probability per level.
    """

    domain: str
    split: str
    records: int
    accuracy: dict[str, Estimate]
    mean_log_prob: dict[str, Estimate]
    dominant: str | None
    too_long: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    domain: Domain,
    records: Sequence[Record],
    *,
    split: str = "test",
    progress: bool = True,
) -> Result:
    """Preference accuracy (section "Metrics" of the paper) of a model on one split of a domain.

    Raises:
        AVError: the split is empty, or no record fits the model's context.
    """
    chosen = choose(model, tokenizer, domain, records, split)
    scores = mean_log_probs(
        model, tokenizer, chosen.records, progress=f"Scoring {domain.name}" if progress else None
    )
    ids = [record.id for record in chosen.records]
    return summarise(domain, split, ids, scores, chosen.too_long, chosen.equal)


class Choice(NamedTuple):
    """Records to score.

    Attributes:
        records: those that can be.
        too_long: ids of those that do not fit the model's context.
        equal: ids of the others of which two levels have the same response, token by token.
    """

    records: list[Record]
    too_long: list[str]
    equal: list[str]


def choose(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    domain: Domain,
    records: Sequence[Record],
    split: str,
) -> Choice:
    """The records of a split that can be scored, and the ids of those that cannot.

    Raises:
        AVError: the split is empty, or no record is left.
    """
    chosen = [record for record in records if record.split == split]
    if not chosen:
        raise AVError(f"{domain.name}: no record is in the {split} split")
    fitting = within_context(tokenizer, chosen, context_length(model))
    if not fitting:
        raise AVError(
            f"{domain.name}: none of the {len(chosen)} records fits the context of "
            f"{context_length(model)} tokens"
        )
    equal = [record.id for record in with_equal_responses(tokenizer, fitting)]
    kept = [record for record in fitting if record.id not in set(equal)]
    if not kept:
        raise AVError(
            f"{domain.name}: in each of the {len(fitting)} records two levels have the same response"
        )
    fits = {record.id for record in fitting}
    return Choice(kept, [record.id for record in chosen if record.id not in fits], equal)


def left_out(name: str, too_long: Sequence[str], equal: Sequence[str]) -> list[str]:
    """What is to be said of records that are not scored, a line for each reason."""
    lines = []
    if too_long:
        lines.append(f"{name}: {len(too_long)} records left out, longer than the context")
    if equal:
        lines.append(f"{name}: {len(equal)} records left out, two levels have the same response")
    return lines


def summarise(
    domain: Domain,
    split: str,
    ids: Sequence[str],
    scores: torch.Tensor,
    too_long: Sequence[str] = (),
    equal: Sequence[str] = (),
) -> Result:
    """Shares, means and intervals of mean log-probabilities of shape (records, levels)."""
    levels, count = list(domain.levels), len(ids)
    wins = votes(scores.numpy()).tolist()
    # A single highest share is above 1 / number of levels, since the shares add up to 1.
    first, second = sorted(wins, reverse=True)[:2]
    return Result(
        domain=domain.name,
        split=split,
        records=count,
        accuracy={level: wilson(won, count) for level, won in zip(levels, wins, strict=True)},
        mean_log_prob={
            level: mean_interval(scores[:, i].double().numpy()) for i, level in enumerate(levels)
        },
        dominant=levels[wins.index(first)] if first > second else None,
        too_long=list(too_long),
        equal=list(equal),
        scores={
            id: dict(zip(levels, row, strict=True))
            for id, row in zip(ids, scores.tolist(), strict=True)
        },
    )


def table(results: Sequence[Result]) -> str:
    """The results as aligned text, a line per level."""
    rows: list[tuple[str, ...]] = [("domain", "level", "accuracy", "95 %", "log-prob", "95 %", "")]
    for result in results:
        for level, share in result.accuracy.items():
            mean = result.mean_log_prob[level]
            rows.append(
                (
                    f"{result.domain} ({result.records})"
                    if level == next(iter(result.accuracy))
                    else "",
                    level,
                    f"{share.value:.2f}",
                    interval(share),
                    f"{mean.value:.2f}",
                    interval(mean),
                    "dominant" if level == result.dominant else "",
                )
            )
    return aligned(rows)


def interval(estimate: Estimate) -> str:
    return f"{estimate.low:.2f} … {estimate.high:.2f}" if math.isfinite(estimate.low) else ""


def as_json(result: Result) -> dict[str, Any]:
    """A result for a JSON file; an interval that has no end is null."""

    def finite(value):
        if isinstance(value, dict):
            return {key: finite(inner) for key, inner in value.items()}
        return None if value in (math.inf, -math.inf) else value

    return finite(asdict(result))
