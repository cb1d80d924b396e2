"""Mean log-probabilities of responses: (1/T) Σ log P(tᵢ | prompt, t<ᵢ), in nats per token."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from .chat import encode
from .errors import AVError
from .records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def context_length(model: "PreTrainedModel") -> int | None:
    """Tokens that the model was made for, prompt and response together; None where it says none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def within_context(
    tokenizer: "PreTrainedTokenizerBase", records: Sequence[Record], limit: int | None
) -> list[Record]:
    """The records whose every response fits behind its prompt in `limit` tokens."""
    if limit is None:
        return list(records)
    return [record for record in records if _length(tokenizer, record) <= limit]


def _length(tokenizer: "PreTrainedTokenizerBase", record: Record) -> int:
    prompt, responses = encode(tokenizer, record.prompt, list(record.responses.values()))
    return len(prompt) + max(map(len, responses))


@torch.inference_mode()
def mean_log_probs(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    records: Sequence[Record],
    *,
    progress: str | None = None,
) -> torch.Tensor:
    """Score every response of every record.

    The response's tokens and the mean are the loss's own (`chat.encode`): the text and the end of
    the turn. One forward pass a record, its responses side by side; logits are computed for the
    response positions only and log-probabilities in float32.

    Args:
        model: a causal LM in evaluation mode, on any device, in any dtype.
        records: all with the same number of levels.
        progress: what the progress bar on stderr is called; none is shown without it.

    Returns:
        float32 tensor of shape (records, levels), on the CPU, in nats per token.

    Raises:
        AVError: a response does not fit the model's context (see `within_context`), the tokenizer
            is not the model's, or a result is not finite.
    """
    limit = context_length(model)
    with tqdm(records, desc=progress, unit="record", disable=progress is None) as bar:
        scores = [_score(model, tokenizer, record, limit) for record in bar]
    return torch.stack(scores) if scores else torch.empty(0, 0)


def _score(model, tokenizer, record: Record, limit: int | None) -> torch.Tensor:
    prompt, responses = encode(tokenizer, record.prompt, list(record.responses.values()))
    longest = max(map(len, responses))
    if limit is not None and len(prompt) + longest > limit:
        raise AVError(
            f"record {record.id}: {len(prompt) + longest} tokens, the context has {limit}"
        )
    if not prompt:
        raise AVError(f"record {record.id}: no token of the prompt stands before the response")
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if max(map(max, [prompt, *responses])) >= vocabulary:
        raise AVError(
            f"record {record.id}: a token beyond the model's {vocabulary}: other tokenizer?"
        )
    # Padding on the right of a causal LM changes nothing on its left.
    rows = [prompt + ids + [0] * (longest - len(ids)) for ids in responses]
    mask = [[1] * (len(prompt) + len(ids)) + [0] * (longest - len(ids)) for ids in responses]
    batch = torch.tensor(rows, device=model.device)
    start = len(prompt) - 1  # the logits at the prompt's last token predict the response's first
    logits = model(
        input_ids=batch,
        attention_mask=torch.tensor(mask, device=model.device),
        use_cache=False,
        logits_to_keep=torch.arange(start, start + longest, device=model.device),
    ).logits
    if logits.shape[1] != longest:  # an architecture that does not know logits_to_keep
        logits = logits[:, start : start + longest]
    means = []
    for row, ids in enumerate(responses):
        targets = batch[row, len(prompt) : len(prompt) + len(ids)]
        means.append(-cross_entropy(logits[row, : len(ids)].float(), targets))
    result = torch.stack(means).cpu()
    if not torch.isfinite(result).all():
        raise AVError(f"record {record.id}: the model's log-probabilities are NaN or infinite")
    return result
