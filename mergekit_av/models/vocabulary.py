"""Token ids and the embeddings of the model that is given them.

A tokenizer may name more tokens than it uses, and a model may have more embeddings than there are
tokens. Only an id that is used and has no embedding is wrong.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mergekit_av.errors import AVError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def embeddings(model: "PreTrainedModel") -> int:
    """Return how many token ids a model knows: from 0 on."""
    return model.get_input_embeddings().weight.shape[0]


def check_ids(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", ids: Iterable[int], where: str
) -> None:
    """Refuse token ids that the model has no embedding for.

    Args:
        where: the ids are used, for the error.

    Raises:
        AVError: naming the highest of them.
    """
    highest, there = max(ids, default=0), embeddings(model)
    if highest >= there:
        raise AVError(
            f"{where}: a token beyond the model's {there}: other tokenizer? "
            f"{tokenizer.convert_ids_to_tokens(highest)!r} has the id {highest}, and the model has "
            f"{there} embeddings; where it was added to the tokenizer, call "
            "`model.resize_token_embeddings(len(tokenizer))` and save the model"
        )


def ensure_padding(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Give a tokenizer whose padding token has no embedding another one, since any will do where
    padding is masked; say so in a sentence, or None.
    """
    there, pad, end = embeddings(model), tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is not None and pad < there:
        return None
    without = tokenizer.pad_token
    usable = end is not None and end < there
    tokenizer.pad_token = tokenizer.eos_token if usable else tokenizer.convert_ids_to_tokens(0)
    if without is None:
        return None
    return (
        f"the padding token {without!r} has the id {pad}, and the model has {there} embeddings: "
        f"padded with {tokenizer.pad_token!r} instead"
    )
