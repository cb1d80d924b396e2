"""How a model writes its answers: greedily, or as `generate()` is told."""

from collections.abc import Iterable, Mapping
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
            from .sampling import Draw, drawing

            told["custom_generate"] = drawing(Draw([f"{self.seed} {id}" for id in ids]))
        return told

    def key(self) -> dict[str, Any]:
        """For a store."""
        told = {"drawn": {**self.sampling, "seed": self.seed}} if self.sampling else {}
        return {"max_new_tokens": self.max_new_tokens, **told}

    def __str__(self) -> str:
        told = [f"{name}={value}" for name, value in self.sampling.items()]
        return ", ".join([*told, f"seed={self.seed}"]) if told else "greedy"
