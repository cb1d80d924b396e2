"""Mean log-probabilities of responses: (1/T) Σ log P(tᵢ | prompt, t<ᵢ), in nats per token.

Records are scored packed (`packing`) where a trial shows that the model gives the same numbers
that way, else one record a forward pass.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import cross_entropy, linear
from tqdm import tqdm

from mergekit_av.data.records import Record
from mergekit_av.errors import AVError

from .chat import encode
from .packing import Row, Sequences, can_pack, hidden_states, length_limit, rows
from .vocabulary import check_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tokens of a row: a CPU is busy with two records and slower once their states leave its cache; an
# accelerator wants many.
CPU_CAPACITY, ACCELERATOR_CAPACITY = 1536, 8192
# Logits in memory at a time, tokens × vocabulary: in float32 64 MiB at most.
BLOCK_TOKENS, BLOCK_VOCABULARY = 4096, 4096
# Model → what it was when a trial showed that it can be packed.
_packed_kinds: WeakKeyDictionary["PreTrainedModel", tuple] = WeakKeyDictionary()


def context_length(model: "PreTrainedModel") -> int | None:
    """Tokens that the model was made for, prompt and response together; None where it says none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def within_context(
    tokenizer: "PreTrainedTokenizerBase", records: Sequence[Record], limit: int | None
) -> list[Record]:
    """Return the records whose every response fits behind its prompt in `limit` tokens."""
    if limit is None:
        return list(records)
    return [record for record in records if _encode(tokenizer, record).longest <= limit]


def with_equal_responses(
    tokenizer: "PreTrainedTokenizerBase", records: Sequence[Record]
) -> list[Record]:
    """Return the records of which no model could prefer one level to all others: two of their
    responses are the same tokens."""
    return [
        record
        for record in records
        if len(set(map(tuple, _encode(tokenizer, record).responses))) < len(record.responses)
    ]


def _encode(tokenizer: "PreTrainedTokenizerBase", record: Record) -> Sequences:
    return Sequences(*encode(tokenizer, record.prompt, list(record.responses.values())))


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
    the turn. A prompt is computed once for all its responses, logits for the response positions
    only and a block at a time, log-probabilities in float32.

    Args:
        model: a causal LM in evaluation mode, on any device, in any dtype. Its attention is
            replaced while it scores: no other thread may use it meanwhile.
        records: all with the same number of levels.
        progress: what the progress bar on stderr is called; none is shown without it.

    Returns:
        float32 tensor of shape (records, levels), on the CPU, in nats per token, in the order of
        `records`.

    Raises:
        AVError: a response does not fit the model's context (see `within_context`), the tokenizer
            is not the model's, or a result is not finite.
    """
    if not records:
        return torch.empty(0, 0)
    encoded = [_encode(tokenizer, record) for record in records]
    for record, sequences in zip(records, encoded, strict=True):
        _check(model, tokenizer, record, sequences)
    result = torch.empty(len(records), len(records[0].responses))
    with tqdm(total=len(records), desc=progress, unit="record", disable=progress is None) as bar:
        for indices, scores in _score(model, encoded):
            for index, finite in zip(indices, scores.isfinite().all(dim=1), strict=True):
                if not finite:
                    raise AVError(
                        f"record {records[index].id}: the model's log-probabilities are NaN or "
                        "infinite"
                    )
            result[indices] = scores
            bar.update(len(indices))
    return result


def _check(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    record: Record,
    sequences: Sequences,
) -> None:
    limit = context_length(model)
    if limit is not None and sequences.longest > limit:
        raise AVError(f"record {record.id}: {sequences.longest} tokens, the context has {limit}")
    if not sequences.prompt:
        raise AVError(f"record {record.id}: no token of the prompt stands before the response")
    if not all(sequences.responses):
        raise AVError(f"record {record.id}: a response without tokens has no log-probability")
    ids = map(max, [sequences.prompt, *sequences.responses])
    check_ids(model, tokenizer, ids, f"record {record.id}")


def _score(
    model: "PreTrainedModel", encoded: Sequence[Sequences]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Indices of some records and their scores, (records, levels), until all have been scored."""
    limit = length_limit(model.config)
    packed = [i for i, sequences in enumerate(encoded) if sequences.longest <= limit]
    if packed and not _packs(model, encoded[packed[0]]):
        packed = []
    capacity = CPU_CAPACITY if model.device.type == "cpu" else ACCELERATOR_CAPACITY
    for row in rows([encoded[i] for i in packed], capacity):
        indices = [packed[i] for i in row]
        yield indices, _score_packed(model, [encoded[i] for i in indices])
    for index in sorted(set(range(len(encoded))) - set(packed)):
        yield [index], _score_plain(model, encoded[index])


def _packs(model: "PreTrainedModel", sample: Sequences) -> bool:
    """Return whether a model can be packed; tried once, for its weights do not decide it."""
    kind = (model.config._attn_implementation, model.dtype, model.device)
    if _packed_kinds.get(model) != kind:
        # A no is not remembered: it may come from weights at a λ that breaks them.
        if not can_pack(model, sample):
            return False
        _packed_kinds[model] = kind
    return True


def _score_packed(model: "PreTrainedModel", records: Sequence[Sequences]) -> torch.Tensor:
    row = Row.of(records, model.device)
    states = hidden_states(model, row)[row.predictors]
    chosen = _log_probs(states, row.targets, model.get_output_embeddings())
    means = torch.stack([part.mean() for part in chosen.split(row.lengths)])
    return means.view(len(records), -1).cpu()


def _log_probs(states: torch.Tensor, targets: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
    """Return log P of each target, float32, from the hidden states (tokens, hidden size) before it.

    The normalising sum goes over the vocabulary a block at a time: the logits of all tokens are
    never in memory, and a block that fits a CPU's cache takes two thirds of the time.
    """
    weight = head.weight
    bias = torch.zeros_like(weight[:, 0]) if head.bias is None else head.bias
    states, targets = states.to(weight.device), targets.to(weight.device)
    parts = []
    for some, wanted in zip(states.split(BLOCK_TOKENS), targets.split(BLOCK_TOKENS), strict=True):
        blocks = zip(weight.split(BLOCK_VOCABULARY), bias.split(BLOCK_VOCABULARY), strict=True)
        sums = [linear(some, w, b).float().logsumexp(dim=1) for w, b in blocks]
        logits = torch.linalg.vecdot(some.float(), weight[wanted].float()) + bias[wanted].float()
        parts.append(logits - torch.stack(sums).logsumexp(dim=0))
    return torch.cat(parts)


def _score_plain(model: "PreTrainedModel", record: Sequences) -> torch.Tensor:
    """One forward pass, the record's responses side by side: (1, levels)."""
    prompt, responses = record.prompt, record.responses
    longest = max(map(len, responses))
    # Padding on the right of a causal LM changes nothing on its left.
    padded = [prompt + ids + [0] * (longest - len(ids)) for ids in responses]
    mask = [[1] * (len(prompt) + len(ids)) + [0] * (longest - len(ids)) for ids in responses]
    batch = torch.tensor(padded, device=model.device)
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
        targets = batch[row, len(prompt) : len(prompt) + len(ids)].to(logits.device)
        means.append(-cross_entropy(logits[row, : len(ids)].float(), targets))
    return torch.stack(means)[None].cpu()
