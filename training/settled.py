"""Levels that need no training: the base prefers them by itself, so λ = 0 gives them."""

import logging
from collections.abc import Callable, Sequence

from accelerate import PartialState

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import Record
from mergekit_av.errors import AVError
from mergekit_av.models.scoring import (
    context_length,
    mean_log_probs,
    with_equal_responses,
    within_context,
)
from mergekit_av.stats import votes

from .base import Base
from .lambdas import meant

# The share of the records from which on a level is settled.
SETTLED = 0.8

log = logging.getLogger(__name__)


def lambdas_for(
    base: Callable[[], Base], domain: Domain, records: Sequence[Record]
) -> tuple[float, ...]:
    """The λ to train a vector of this base at: those at which the domain's levels are meant, without
    a level between the ends that the base prefers by itself.

    Args:
        base: gives the base, which is asked for where it decides anything.
        records: those in the train split are scored under the base.

    Raises:
        AVError: the base does not load, or no record can be scored.
    """
    every = meant(len(domain.levels))
    if len(every) < 3:
        return every
    name, _, model, tokenizer = base()
    training = [record for record in records if record.split == "train"]
    fitting = within_context(tokenizer, training, context_length(model))
    if not fitting:
        raise AVError(f"no train record of {domain.name} fits the context of {name}")
    undecided = {record.id for record in with_equal_responses(tokenizer, fitting)}
    scored = [record for record in fitting if record.id not in undecided]
    if not scored:
        return every
    show = f"Scoring {domain.name}" if PartialState().is_main_process else None
    model.to(PartialState().device)
    preferred = votes(mean_log_probs(model, tokenizer, scored, progress=show).numpy())
    model.to("cpu")
    kept = list(every)
    for level, called in list(enumerate(domain.levels))[1:-1]:
        if preferred[level] >= SETTLED * len(scored):
            kept.remove(every[level])
            if show:
                log.info(
                    "%s: the base prefers %s on %g of %d records: λ = 0 gives it, it is not trained",
                    domain.name, called, preferred[level], len(scored),
                )  # fmt: skip
    return tuple(kept)
