"""A vector stored as factors: a PEFT LoRA adapter whose scale is λ, and which tensor each layer is."""

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path

import torch

from mergekit_av.errors import AVError
from mergekit_av.io.checkpoint import Checkpoint, blocks_of
from mergekit_av.io.fingerprint import fingerprint, non_finite

from .delta import Delta
from .factors import Factors
from .metadata import METADATA, Metadata, StoredTensor

# PEFT's names. Where a vector has whole tensors beside the factors, of which no adapter can be
# told in differences, the factors have another name: tools would load half of the vector.
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FACTORS, WHOLE = "factors.safetensors", "whole.safetensors"


class LowRankDelta(Delta):
    """Factors of the linear layers' differences; the other tensors differ in nothing, or are whole.

    It knows all tensors of its base by name and shape, so that it fits no other.
    """

    @staticmethod
    def is_in(folder: Path) -> bool:
        return any((folder / name).is_file() for name in (ADAPTER, FACTORS))

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """How each tensor of the base is stored."""
        return Metadata.read(self.folder).stored_tensors

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        """The stored tensors, of which each that the metadata speaks of is there in its shape."""
        files = [name for name in (ADAPTER, FACTORS, WHOLE) if (self.folder / name).is_file()]
        checkpoint = Checkpoint(self.folder, files)
        wanted = {}
        for name, tensor in self.tensors.items():
            if tensor.whole:
                wanted[name] = tensor.shape
            elif tensor.layer is not None:
                _, a = factor_names(tensor.layer)
                rank = checkpoint[a].shape[0] if a in checkpoint else 0
                wanted |= factor_shapes(tensor, rank)
        for name in sorted(set(wanted) | set(checkpoint)):
            if name not in checkpoint or checkpoint[name].shape != wanted.get(name):
                raise AVError(
                    f"{self.folder}: {name} is not as {METADATA} says: get the vector again"
                )
        return checkpoint

    @property
    def files(self) -> list[Path]:
        config = self.folder / ADAPTER_CONFIG
        return [*self._checkpoint.files, *([config] if config.is_file() else [])]

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def factors(self, name: str) -> Factors | None:
        tensor = self.tensors[name]
        if tensor.layer is None:
            return None
        b, a = (self._checkpoint.read(factor) for factor in factor_names(tensor.layer))
        return Factors(b, a, tensor.transposed)

    def dense(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        tensor, factors = self.tensors[name], self.factors(name)
        if factors is not None:
            return factors.to(device).dense()
        if tensor.whole:
            return self._checkpoint.read(name).to(device)
        return torch.zeros(1, device=device).expand(tensor.shape)  # takes no memory

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        return blocks_of(self.dense(name))

    def is_zero(self, name: str) -> bool:
        tensor = self.tensors[name]
        return not (tensor.whole or tensor.layer) or super().is_zero(name)

    def dtypes(self) -> set[str]:
        return {str(info.dtype).removeprefix("torch.") for info in self._checkpoint.values()}

    def fingerprint(self) -> str:
        return fingerprint(self._checkpoint)

    def non_finite(self) -> list[str]:
        found = non_finite(self._checkpoint)
        for name in () if found else self.names():
            factors = self.factors(name)
            if factors is not None and not factors.norm() <= torch.finfo(torch.float32).max:
                found.append(name)
        return found


def factor_names(layer: str) -> tuple[str, str]:
    """Return what PEFT calls the factors B and A of a layer in an adapter's file."""
    name = f"base_model.model.{layer}.lora_"
    return f"{name}B.weight", f"{name}A.weight"


def factor_shapes(tensor: StoredTensor, rank: int) -> dict[str, tuple[int, int]]:
    """Return the shapes of the factors B and A of a tensor that has a layer, by their names."""
    rows, columns = tensor.shape[::-1] if tensor.transposed else tensor.shape
    b, a = factor_names(str(tensor.layer))
    return {b: (rows, rank), a: (rank, columns)}
