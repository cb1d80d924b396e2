"""Levels that need no training: the base prefers them by itself, so λ = 0 gives them."""

import logging
from collections.abc import Sequence

from accelerate import PartialState

from mergekit_av.chat import ensure_chat_template
from mergekit_av.domains import Domain
from mergekit_av.errors import AVError
from mergekit_av.logprobs import context_length, mean_log_probs, within_context
from mergekit_av.models import load_model, load_tokenizer, resolve
from mergekit_av.records import Record

from .lambdas import meant

# The share of the records from which on a level is settled.
SETTLED = 0.8

log = logging.getLogger(__name__)


def lambdas_for(base: str, domain: Domain, records: Sequence[Record]) -> tuple[float, ...]:
    """The λ to train a vector of this base at: those at which the domain's levels are meant, without
    a level between the ends that the base prefers by itself.

    Args:
        base: a folder or Hub id.
        records: those in the train split are scored under the base.

    Raises:
        AVError: the base does not load, or no record fits its context.
    """
    every = meant(len(domain.levels))
    if len(every) < 3:
        return every
    folder = resolve(base)
    model, tokenizer = load_model(folder, device=str(PartialState().device)), load_tokenizer(folder)
    ensure_chat_template(tokenizer)
    training = [record for record in records if record.split == "train"]
    fitting = within_context(tokenizer, training, context_length(model))
    if not fitting:
        raise AVError(f"no train record of {domain.name} fits the context of {base}")
    show = f"Scoring {domain.name}" if PartialState().is_main_process else None
    preferred = mean_log_probs(model, tokenizer, fitting, progress=show).argmax(dim=1).tolist()
    kept = list(every)
    for level, name in list(enumerate(domain.levels))[1:-1]:
        count = preferred.count(level)
        if count >= SETTLED * len(preferred):
            kept.remove(every[level])
            if show:
                log.info(
                    "%s: the base prefers %s on %d of %d records: λ = 0 gives it, it is not trained",
                    domain.name, name, count, len(preferred),
                )  # fmt: skip
    return tuple(kept)
