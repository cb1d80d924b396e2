"""The difference of two models, kept at low rank while it is read."""

from collections.abc import Mapping

import torch

from mergekit_av.errors import AVError
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.models.layout import Layout
from mergekit_av.models.load import load_shape

from .factors import Factors
from .layers import carried_layers, layer_tensors, stored_tensors
from .low_rank import low_rank
from .metadata import StoredTensor
from .origin import Origin
from .writing import Tensors


class Compressed:
    """The nearest matrices of a given rank to the differences of all linear layers; nothing of the other
    tensors.

    A tensor at a time: memory is a few times the largest matrix, in float64.

    Attributes:
        tensors: every tensor of the base, and how the vector has it.
        rank: of the factors.

    Args:
        of: what kind of weights the difference is of, for the metadata.

    Raises:
        AVError: the rank is impossible, or the base has no linear layer of which factors can be stored.
    """

    def __init__(self, base: Checkpoint, difference: Tensors, rank: int, of: str):
        model = load_shape(base.folder)
        layout = Layout.of(model, base.shapes)
        self._difference = difference
        able = layer_tensors(model, layout)
        layers = {layer: able[layer] for layer in carried_layers(model, layout) if layer in able}
        self.tensors: Mapping[str, StoredTensor] = stored_tensors(model, difference.shapes, layers)
        largest = max((min(t.shape) for t in self.tensors.values() if t.layer), default=0)
        if not 1 <= rank <= largest:
            raise AVError(
                f"rank {rank} is impossible: the linear layers of {base.folder} have 1 to {largest}"
                if largest
                else f"{base.folder} has no linear layer of which factors can be stored"
            )
        self.rank, self._of = rank, of
        self._all = self._kept = 0.0

    def factors(self, name: str) -> Factors:
        """Return the truncated singular value decomposition of a difference, float32."""
        tensor = self.tensors[name]
        delta = self._read(name).T if tensor.transposed else self._read(name)
        b, a, energies = low_rank(delta, self.rank)
        self._all += energies.sum().item()
        self._kept += energies[: self.rank].sum().item()
        return Factors(b, a, tensor.transposed)

    def tensor(self, name: str) -> torch.Tensor:
        """Raise KeyError: no tensor is stored whole."""
        raise KeyError(name)

    def origin(self) -> Origin:
        """Return the base's identity and norms; reads what is left out, too."""
        for name, tensor in self.tensors.items():
            if tensor.layer is None:
                squares = (block.double().square().sum() for block in self._difference.blocks(name))
                self._all += sum(square.item() for square in squares)
        return self._difference.origin()

    def difference(self) -> str:
        """Return what the difference is of, and what is kept of it; once all of it was read."""
        kept = self._kept / self._all if self._all else 1.0
        return f"{self._of}; rank {self.rank} of the linear layers, {kept:.1%} of its squared norm"

    def _read(self, name: str) -> torch.Tensor:
        blocks = list(self._difference.blocks(name))
        return torch.cat(blocks).reshape(self.tensors[name].shape)
