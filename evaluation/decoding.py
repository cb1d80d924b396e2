"""How a model writes its answers: greedily, or as `generate()` is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_NEW_TOKENS = 80


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Attributes:
        max_new_tokens: where they are cut.
        sampling: arguments of transformers' `generate()`; without any, the most probable token each
            time.
        seed: of what is drawn. Each answer is drawn from the same seed on its own, so that it does
            not depend on which others are asked for.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    sampling: Mapping[str, bool | int | float] = field(default_factory=dict)
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """For `generate()`."""
        return {"do_sample": False, "max_new_tokens": self.max_new_tokens, **self.sampling}

    def key(self) -> dict[str, Any]:
        """For a store."""
        told = {"sampling": {**self.sampling, "seed": self.seed}} if self.sampling else {}
        return {"max_new_tokens": self.max_new_tokens, **told}

    def __str__(self) -> str:
        told = [f"{name}={value}" for name, value in self.sampling.items()]
        return ", ".join([*told, f"seed={self.seed}"]) if told else "greedy"
