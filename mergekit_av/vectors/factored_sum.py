"""Sums of low-rank vectors, of low rank themselves."""

from collections.abc import Mapping, Sequence

import torch

from mergekit_av.errors import AVError

from .arithmetic import add_vectors
from .factors import Factors
from .low_rank_delta import LowRankDelta
from .metadata import StoredTensor
from .origin import Origin


class FactoredSum:
    """Σ λᵢ BᵢAᵢ as one product, [λ₁B₁ λ₂B₂ …]·[A₁; A₂; …], for `write_low_rank`.

    Attributes:
        tensors: every tensor of the base, and how the sum has it.
        rank: the sum of the ranks, of the layer where it is largest.

    Raises:
        AVError: the vectors are of different forms of their base.
    """

    def __init__(
        self, terms: Sequence[tuple[float, LowRankDelta]], origin: Origin, difference: str
    ):
        self._terms, self._origin, self._difference = terms, origin, difference
        self.tensors: Mapping[str, StoredTensor] = _joined([delta.tensors for _, delta in terms])
        ranks = (
            sum(f.rank for _, d in terms if (f := d.factors(name)) is not None)
            for name, tensor in self.tensors.items()
            if tensor.layer is not None
        )
        self.rank = max(ranks, default=0)

    def factors(self, name: str) -> Factors:
        """Return the factors of one tensor of the sum, float32."""
        found = [(c, f) for c, d in self._terms if (f := d.factors(name)) is not None]
        return Factors(
            torch.cat([(c * f.b.double()).float() for c, f in found], dim=1),
            torch.cat([f.a.float() for _, f in found], dim=0),
            found[0][1].transposed,
        )

    def tensor(self, name: str) -> torch.Tensor:
        """Return the sum of tensors of which one at least is stored whole, float32."""
        terms = [(c, d.dense(name)) for c, d in self._terms]
        return add_vectors(torch.zeros(self.tensors[name].shape), terms, name=name)

    def origin(self) -> Origin:
        """Return what the sum is a difference to."""
        return self._origin

    def difference(self) -> str:
        """Return the sum in words."""
        return self._difference


def _joined(parts: Sequence[Mapping[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """Return how a sum has each tensor: whole where one of the vectors has it whole, else by its
    factors, where one has these."""
    found: dict[str, StoredTensor] = {}
    for part in parts:
        for name, tensor in part.items():
            other = found.setdefault(name, tensor)
            layers = {other.layer, tensor.layer} - {None}
            if other.shape != tensor.shape or len(layers) > 1:
                raise AVError(f"{name} is another tensor in each of the vectors")
            if tensor.whole or other.whole:
                found[name] = StoredTensor(tensor.shape, whole=True)
            elif other.layer is None:
                found[name] = tensor
    return found
