"""Preference accuracy: at which level is each record's most likely response?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


@dataclass(frozen=True)
class Result:
    """The preference accuracies of a model in one domain.

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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    domain: Domain,
    records: Sequence[Record],
    *,
    split: str = "test",
    progress: bool = True,
) -> Result:
    """Measure preference accuracy (section "Metrics" of the paper) on one split of a domain.

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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    domain: Domain,
    records: Sequence[Record],
    split: str,
) -> Choice:
    """Choose the records of a split that can be scored, and the ids of those that cannot.

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
    """Return how many records are not scored, a line for each reason."""
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
    """Return shares, means and intervals of mean log-probabilities.

    Args:
        ids: of the records.
        scores: (records, levels), nats per token.
    """
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
