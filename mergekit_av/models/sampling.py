"""Sampling in which no row of a batch depends on another."""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Draw:
    """Draws each row's next token with a generator of the row's own, the same on every device: the
    last of the processors of transformers' `generate()`, it leaves the drawn token alone possible.

    Args:
        seeds: one a row.
    """

    def __init__(self, seeds: Sequence[str]):
        self.generators = [
            torch.Generator().manual_seed(zlib.crc32(seed.encode())) for seed in seeds
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary], as of `generate()`, with -inf for all but one token a row."""
        # Exponential(rate p) clocks: token i is the first to ring with probability p_i.
        times = [
            torch.empty(scores.shape[1]).exponential_(generator=generator)
            for generator in self.generators
        ]
        first = (scores.softmax(-1) / torch.stack(times).to(scores)).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(1, first, 0.0)


def drawing(draw: Draw):
    """Sample in `generate()` with `draw` after the processors that shape the probabilities."""

    def sample(model: "PreTrainedModel", input_ids, logits_processor, **others):
        logits_processor.append(draw)
        # `_sample` draws as well, among one token.
        with torch.random.fork_rng([input_ids.device] if input_ids.is_cuda else []):
            return model._sample(input_ids, logits_processor=logits_processor, **others)

    return sample
