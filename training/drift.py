"""Texts on which a vector shall change nothing: prompts and responses of other domains.

A vector that is trained on its own domain alone acts on others too (over-generalisation, table 4 of
the paper), and what is wanted in one can then not be had beside what is wanted in another. So each
pair has a text of another domain beside it, on which θ_base + λ θ_AV shall predict what θ_base does.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import kl_div, log_softmax
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mergekit_av.data.records import Record
from mergekit_av.errors import AVError
from mergekit_av.models.chat import encode

# Columns beside TRL's: the token ids of a text, and the number of those that are its prompt's.
IDS, PROMPT = "held_ids", "held_prompt"
COLUMNS = (IDS, PROMPT)
PADDING = -1


def held_texts(
    records: Iterable[Record],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    seed: int,
) -> list[tuple[list[int], int]]:
    """Return all responses of all records in a drawn order: token ids, prompt included, and the prompt's length.

    A response is cut at `limit` tokens, and left out where the prompt fills them.

    Raises:
        AVError: no prompt leaves room for a response.
    """
    texts = []
    for record in records:
        prompt, responses = encode(tokenizer, record.prompt, list(record.responses.values()))
        texts += [((prompt + ids)[:limit], len(prompt)) for ids in responses]
    texts = [(ids, prompt) for ids, prompt in texts if len(ids) > prompt]
    if not texts:
        raise AVError(
            f"no prompt of the held domains leaves room for a response in {limit} tokens: raise "
            "--max_length, or hold others"
        )
    random.Random(seed).shuffle(texts)
    return texts


def beside(pairs: Dataset, texts: Sequence[tuple[list[int], int]]) -> Dataset:
    """Return pairs with a text in each row; the texts take turns."""
    turns = [texts[row % len(texts)] for row in range(len(pairs))]
    for column, values in zip(COLUMNS, zip(*turns, strict=True), strict=True):
        pairs = pairs.add_column(column, list(values))
    return pairs


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the texts of some rows: token ids (rows, length), padded on the right; tokens of prompts (rows)."""
    ids = [torch.tensor(row[IDS]) for row in rows]
    padded = pad_sequence(ids, batch_first=True, padding_value=PADDING)
    return {IDS: padded, PROMPT: torch.tensor([row[PROMPT] for row in rows])}


def drift(
    model: PreTrainedModel,
    base: Callable[..., torch.Tensor],
    ids: torch.Tensor,
    prompt: torch.Tensor,
) -> torch.Tensor:
    """Return KL(base ‖ model) of the next token, in nats, its mean over all response tokens.

    Args:
        base: gives the base's logits for the model's inputs.
        ids, prompt: see `collate`.
    """
    there = ids != PADDING
    inputs = {"input_ids": ids.where(there, 0), "attention_mask": there.long(), "use_cache": False}
    position = torch.arange(ids.shape[1], device=ids.device)
    # The logits at a token are those of the next one.
    before = (there & (position >= prompt[:, None]))[:, 1:]
    with torch.no_grad():
        wanted = base(**inputs)[:, :-1][before]
    found = model(**inputs).logits[:, :-1][before]
    return kl_div(
        log_softmax(found.float(), dim=-1),
        log_softmax(wanted.float(), dim=-1),
        log_target=True,
        reduction="batchmean",
    )
