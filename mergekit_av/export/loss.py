"""What an adapter of a given rank keeps of a vector."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    pass

# For which the loss is told whatever the adapter's own rank is.
RANKS = (4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Part:
    """What becomes of one kind of tensors.

    Attributes:
        kind: of linear layers their name, e.g. `q_proj`; else `embeddings` (with an output
            layer that is tied to them), `output layer`, `norms`, `biases`, `other weights`, which
            the adapter leaves out.
        tensors: how many there are.
        share: of the vector's squared norm.
        kept: of the part's own squared norm, 0 to 1.
    """

    kind: str
    tensors: int
    share: float
    kept: float


@dataclass(frozen=True)
class LoraExport:
    """An adapter that was written.

    Attributes:
        folder: where it is.
        rank: of its matrices.
        scale: λ at which it acts as it comes.
        dtype: of its tensors.
        nbytes: size of its tensors' file.
        parts: by share, the largest first.
        kept_at: rank → the share of the vector's squared norm that an adapter of that rank keeps.
    """

    folder: Path
    rank: int
    scale: float
    dtype: str
    nbytes: int
    parts: Sequence[Part]
    kept_at: dict[int, float] = field(default_factory=dict)

    @property
    def kept(self) -> float:
        """The share of the vector's squared norm that the adapter keeps."""
        return sum(part.share * part.kept for part in self.parts)


def _parts(losses: dict, left_out: dict[str, list[float]], rank: int) -> list[Part]:
    carried = {kind: _energy(some) for kind, some in losses.items()}
    whole = {**carried, **{kind: sum(squares) for kind, squares in left_out.items()}}
    total = sum(whole.values())
    parts = [
        Part(
            kind,
            len(losses.get(kind) or left_out[kind]),
            _ratio(energy, total),
            # Of nothing, nothing is lost.
            _ratio(_energy(losses[kind], rank), energy, 1.0) if kind in losses else 0.0,
        )
        for kind, energy in whole.items()
    ]
    return sorted(parts, key=lambda part: -part.share)


def _kept_at(losses: dict, left_out: dict[str, list[float]], ranks: list[int]) -> dict[int, float]:
    every = [energies for some in losses.values() for energies in some]
    total = _energy(every) + sum(map(sum, left_out.values()))
    return {rank: _ratio(_energy(every, rank), total) for rank in ranks}


def _energy(some: list[torch.Tensor], rank: int | None = None) -> float:
    return sum(energies[:rank].sum().item() for energies in some)


def _ratio(part: float, whole: float, of_nothing: float = 0.0) -> float:
    return part / whole if whole else of_nothing
