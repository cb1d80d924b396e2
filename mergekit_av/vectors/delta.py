"""How the tensors of an alignment vector are stored.

Only this package knows the kinds. Everything else reads names, shapes, blocks and dense tensors, so
that a vector can be merged, turned, exported and checked whatever it is made of.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path

import torch

from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint, non_finite

from .factors import Factors


class Delta(ABC):
    """The tensors of one alignment vector, read from its folder when they are asked for.

    Args:
        folder: the vector's.

    Raises:
        AVError: by any method: a file is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Return whether a folder holds tensors of this kind."""
        return False

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """The files that hold the tensors: all that a copy of the vector needs of them."""

    @abstractmethod
    def names(self) -> Collection[str]:
        """Return the names of the base's tensors that the vector has a difference for."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor: the base's."""

    @abstractmethod
    def dense(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return a whole tensor in the base's shape, in the dtype it is stored in; a product of
        factors in float32. It must not be written to: it may be a view of its file."""

    def factors(self, name: str) -> Factors | None:
        """Return a tensor as it is stored, where that is as factors; None where it is not."""
        return None

    @abstractmethod
    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the values of a tensor, flat, in the pieces of `Checkpoint.blocks`."""

    @abstractmethod
    def dtypes(self) -> set[str]:
        """Return the dtypes in which values are stored, e.g. `bfloat16`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return 32 hexadecimal digits over names, shapes and values; reads every value."""

    @abstractmethod
    def non_finite(self) -> list[str]:
        """Return the names of tensors with NaN or infinite values; reads every value."""

    def release(self) -> None:  # noqa: B027  (a kind that maps nothing has nothing to do)
        """Let go of files that `dense` keeps mapped; tensors that are in use keep theirs."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by name."""
        return {name: self.shape(name) for name in self.names()}

    def is_zero(self, name: str) -> bool:
        """Return whether the vector leaves a tensor of the base as it is, at any λ."""
        return not any(torch.count_nonzero(block) for block in self.blocks(name))


class DenseDelta(Delta):
    """A checkpoint in the Hub's layout: one tensor of the base's name and shape for each weight."""

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder)

    @cached_property
    def _mapped(self) -> dict[str, torch.Tensor]:
        return self._checkpoint.mapped()

    @property
    def files(self) -> list[Path]:
        return self._checkpoint.paths

    def names(self) -> Collection[str]:
        return self._checkpoint.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint[name].shape

    def dense(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        return self._mapped[name].to(device)

    def release(self) -> None:
        self.__dict__.pop("_mapped", None)

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        return self._checkpoint.blocks(name)

    def dtypes(self) -> set[str]:
        return {str(info.dtype).removeprefix("torch.") for info in self._checkpoint.values()}

    def fingerprint(self) -> str:
        return fingerprint(self._checkpoint)

    def non_finite(self) -> list[str]:
        return non_finite(self._checkpoint)
