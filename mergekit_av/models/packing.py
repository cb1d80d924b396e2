"""Packing: the hidden states of many sequences, every token of which is computed once.

The responses of a record begin with the same prompt, and the prompts of a chat template with the
same system message. So the sequences form a tree, and a `Row` is that tree's tokens one after the
other, without padding. All of a decoder but its attention treats a token by itself, given its
position; attention alone must know what came before. So the decoder runs over the row, and inside
every attention layer the sequences are laid out side by side, attend causally, each on its own,
and are folded into the row again.

Whether a model can be used this way is not looked up but tried: see `can_pack`.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ATTENTION = "mergekit_av_packed"
# How far the hidden states of a packed row may be from those of its sequences alone, relative to
# their norm: what rounding does to them, in a deep model too.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}
# How far a neighbour's tokens may move them: not at all, but for mixtures of experts, which may add
# up in another order.
LEAK = 1e-6
PROBE_TOKENS = 24
# `sliding_window`, `attention_window_size`, `attention_chunk_size`, `local_attention`, …
LOCAL_ATTENTION = re.compile(r"((window|chunk)(_size)?|local_attention)$")


@dataclass(frozen=True)
class Sequences:
    """A prompt and its responses, as token ids; none of them empty."""

    prompt: list[int]
    responses: list[list[int]]

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest response."""
        return len(self.prompt) + max(map(len, self.responses))

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass(frozen=True)
class Row:
    """Sequences as the tokens of their tree. All tensors are int64.

    Attributes:
        ids, positions: (tokens,), each token and its distance from the beginning.
        layout: (sequences, longest), where in the row each sequence's tokens are; padded with 0
            on the right, which causal attention never sees.
        places: (tokens,), where in the flattened layout each token is: in one of its sequences.
        predictors, targets: (response tokens,), where in the row the token before each response
            token is, and the response token's id; response after response.
        lengths: tokens of each response.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    layout: torch.Tensor
    places: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    lengths: list[int]

    @classmethod
    def of(cls, records: Sequence[Sequences], device: torch.device | str = "cpu") -> "Row":
        nodes: dict[tuple[int, int], int] = {}  # parent and id → place in the row
        ids: list[int] = []
        positions: list[int] = []
        layout: list[list[int]] = []
        predictors: list[int] = []
        targets: list[int] = []
        lengths: list[int] = []
        for record in records:
            for response in record.responses:
                node, path = -1, []
                # Nothing follows the last token: its hidden state predicts nothing.
                for depth, token in enumerate([*record.prompt, *response[:-1]]):
                    node = nodes.setdefault((node, token), len(ids))
                    if node == len(ids):
                        ids.append(token)
                        positions.append(depth)
                    path.append(node)
                layout.append(path)
                predictors += path[len(record.prompt) - 1 :]
                targets += response
                lengths.append(len(response))
        longest = max(map(len, layout))
        places = [0] * len(ids)
        for number, path in enumerate(layout):
            for depth, node in enumerate(path):
                places[node] = number * longest + depth
        padded = [path + [0] * (longest - len(path)) for path in layout]

        def tensor(values: list) -> torch.Tensor:
            return torch.tensor(values, device=device)

        return cls(
            ids=tensor(ids),
            positions=tensor(positions),
            layout=tensor(padded),
            places=tensor(places),
            predictors=tensor(predictors),
            targets=tensor(targets),
            lengths=lengths,
        )


def rows(records: Sequence[Sequences], capacity: int) -> Iterator[list[int]]:
    """Indices of the records of each row: of similar length, and together within the capacity.

    The longest come first, so that memory that suffices for the first row suffices for all. A
    record longer than the capacity has a row of its own.
    """
    row: list[int] = []
    filled = 0
    for index in sorted(range(len(records)), key=lambda i: -records[i].longest):
        if row and filled + records[index].tokens > capacity:
            yield row
            row, filled = [], 0
        row.append(index)
        filled += records[index].tokens
    if row:
        yield row


def hidden_states(model: "PreTrainedModel", row: Row) -> torch.Tensor:
    """Return the decoder's last hidden state at every token of a row, shape (tokens, hidden size)."""
    decoder = model.get_decoder()
    with _packed_attention(decoder.config):
        output = decoder(
            input_ids=row.ids[None], position_ids=row.positions[None], use_cache=False, packed=row
        )
    return output.last_hidden_state[0]


@contextmanager
def _packed_attention(config: "PreTrainedConfig") -> Iterator[None]:
    """Attention of each sequence by itself, while the block lasts.

    Raises:
        NotImplementedError: for other attention than sdpa; `can_pack` takes it for a no, so that
            such a model is scored the plain way and no user sees it. (`_attend` does the same.)
    """
    from transformers import AttentionInterface

    usual = config._attn_implementation
    if usual != "sdpa":
        raise NotImplementedError(f"packing knows sdpa attention only, not {usual}")
    AttentionInterface.register(ATTENTION, _attend)
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = usual


def _attend(module, query, key, value, attention_mask, *, packed: Row, **options):
    """Compute transformers' sdpa attention for each sequence of a row by itself.

    `query`, `key` and `value` have the shape (1, heads, tokens, head size). Without a mask, sdpa
    attention is causal; transformers makes none for an implementation of a name it does not know.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None or options.get("position_bias") is not None:
        raise NotImplementedError("packing knows causal attention only")
    layout, places = packed.layout.to(key.device), packed.places.to(key.device)

    def side_by_side(states):  # → (sequences, heads, longest, head size)
        tokens = states[0].transpose(0, 1).index_select(0, layout.flatten())
        return tokens.unflatten(0, layout.shape).transpose(1, 2)

    options.pop("position_ids", None)
    output, _ = sdpa_attention_forward(
        module, side_by_side(query), side_by_side(key), side_by_side(value), None, **options
    )
    return output.flatten(0, 1).index_select(0, places)[None], None


def length_limit(config: "PreTrainedConfig") -> float:
    """Tokens up to which a model treats a sequence the same however it is laid out.

    Beyond a sliding window or an attention chunk a layer sees less than everything before it, and
    beyond its original context LongRoPE takes other frequencies for the whole row.
    """
    content = config.get_text_config().to_dict()
    sizes = [size for name, size in content.items() if LOCAL_ATTENTION.search(name)]
    rope = content.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        sizes += [
            rope.get("original_max_position_embeddings"),
            content.get("original_max_position_embeddings"),
        ]
    return min((size for size in sizes if type(size) is int and size), default=math.inf)


@torch.inference_mode()
def can_pack(model: "PreTrainedModel", sample: Sequences) -> bool:
    """Return whether packing gives this model's own numbers, tried with a few tokens.

    So a model is recognised whose tokens reach one another by another way than attention (a state
    space, a convolution), and one that does something to its logits (soft-capping, scaling).

    Args:
        sample: whose first few tokens are used.
    """
    if type(model.get_output_embeddings()) is not torch.nn.Linear:
        return False  # the log-probabilities are made from a plain weight
    try:
        return _packs(model, sample)
    except Exception:  # architectures refuse in no end of ways; the plain path takes them all
        return False


def _packs(model: "PreTrainedModel", sample: Sequences) -> bool:
    few = ((sample.prompt + sample.responses[0]) * PROBE_TOKENS)[:PROBE_TOKENS]
    # Of unequal length, the longer one first: padding and a neighbour both come before the second.
    prompt, first, second = few[:12], few[12:20], few[20:]
    head, decoder = model.get_output_embeddings(), model.get_decoder()

    def packed(responses: list[list[int]]) -> tuple[torch.Tensor, ...]:
        row = Row.of([Sequences(prompt, responses)], model.device)
        return hidden_states(model, row)[row.predictors].split(row.lengths)

    together = packed([first, second])
    # Nothing of the first response reaches the second, in whatever precision.
    if not _distance(packed([first[::-1], second])[1], together[1]) <= LEAK:
        return False
    for response, states in zip((first, second), together, strict=True):
        ids = torch.tensor([prompt + response[:-1]], device=model.device)
        alone = decoder(input_ids=ids, use_cache=False).last_hidden_state
        # The same numbers from the same kernel: any difference is something done to the logits.
        logits = model(input_ids=ids, use_cache=False).logits
        if not torch.equal(head(alone).float(), logits.float()):
            return False
        expected = alone[0, len(prompt) - 1 :]
        if not _distance(states, expected) <= TOLERANCE.get(alone.dtype, 0):
            return False
    return True


def _distance(states: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, relative to that of what is expected; may be NaN."""
    expected = expected.float()
    return ((states.float() - expected).norm() / expected.norm()).item()
