"""How a model writes its answers: greedily, or as `generate()` is told."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_NEW_TOKENS = 80


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Attributes:
        max_new_tokens: where they are cut.
        sampling: arguments of transformers' `generate()`; without any, the most probable token each
            time.
        seed: of what is drawn, with the record's id, so that an answer does not depend on which
            others are asked for.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    sampling: Mapping[str, bool | int | float] = field(default_factory=dict)
    seed: int = 0

    def arguments(self, ids: Iterable[str]) -> dict[str, Any]:
        """For `generate()` of a batch; `ids` are its records'."""
        told = {"do_sample": False, "max_new_tokens": self.max_new_tokens, **self.sampling}
        if told["do_sample"]:
            told["custom_generate"] = _drawing(Draw([f"{self.seed} {id}" for id in ids]))
        return told

    def key(self) -> dict[str, Any]:
        """For a store."""
        told = {"drawn": {**self.sampling, "seed": self.seed}} if self.sampling else {}
        return {"max_new_tokens": self.max_new_tokens, **told}

    def __str__(self) -> str:
        told = [f"{name}={value}" for name, value in self.sampling.items()]
        return ", ".join([*told, f"seed={self.seed}"]) if told else "greedy"


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


def _drawing(draw: Draw):
    """`generate()`'s sampling with `draw` after the processors that shape the probabilities."""

    def sample(model: "PreTrainedModel", input_ids, logits_processor, **others):
        logits_processor.append(draw)
        # `_sample` draws as well, among one token.
        with torch.random.fork_rng([input_ids.device] if input_ids.is_cuda else []):
            return model._sample(input_ids, logits_processor=logits_processor, **others)

    return sample
