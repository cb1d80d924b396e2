"""Which λ to train at: not those of levels that the base prefers by itself, which λ = 0 gives."""

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

# The share of the records from which on a level that the base prefers needs no training.
PREFERRED = 0.8

log = logging.getLogger(__name__)


def select_lambdas(
    load: Callable[[], Base], domain: Domain, records: Sequence[Record]
) -> tuple[float, ...]:
    """Return the λ to train a vector of this base at: those at which the domain's levels are meant,
    without a level between the ends that the base prefers by itself.

    Args:
        load: gives the base, which is asked for where it decides anything.
        records: those in the train split are scored under the base.

    Raises:
        AVError: the base does not load, or no record can be scored.
    """
    lambdas = meant(len(domain.levels))
    if len(lambdas) < 3:
        return lambdas
    base = load()
    training = [record for record in records if record.split == "train"]
    fitting = within_context(base.tokenizer, training, context_length(base.model))
    if not fitting:
        raise AVError(f"no train record of {domain.name} fits the context of {base.name}")
    undecided = {record.id for record in with_equal_responses(base.tokenizer, fitting)}
    scored = [record for record in fitting if record.id not in undecided]
    if not scored:
        return lambdas
    main = PartialState().is_main_process
    home = base.model.device
    if home != PartialState().device:  # quantised weights are there, and cannot be moved
        base.model.to(PartialState().device)
    progress = f"Scoring {domain.name}" if main else None
    scores = mean_log_probs(base.model, base.tokenizer, scored, progress=progress)
    if home != base.model.device:
        base.model.to(home)
    counts, levels = votes(scores.numpy()), list(domain.levels)
    selected = list(lambdas)
    for level in range(1, len(levels) - 1):
        if counts[level] < PREFERRED * len(scored):
            continue
        selected.remove(lambdas[level])
        if main:
            log.info(
                "%s: the base prefers %s on %g of %d records: λ = 0 gives it, it is not trained",
                *(domain.name, levels[level], counts[level], len(scored)),
            )
    return tuple(selected)
