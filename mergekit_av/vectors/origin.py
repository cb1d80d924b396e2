"""What is learnt of a base while it is read: its fingerprint and the norms of its tensors."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from mergekit_av.hub.source import revision_of
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import Digest, combined_fingerprint

from .metadata import BaseIdentity


class Origin(NamedTuple):
    """Where the tensors of a vector come from.

    Attributes:
        base: the model that they are a difference to.
        norms: name → norm of the base's tensor, of those where it is known.
    """

    base: BaseIdentity
    norms: dict[str, float] = {}  # noqa: RUF012  (never written to)


class BaseReader:
    """Read a base once, for its values and for what identifies it.

    Args:
        name: what the metadata calls the base.
    """

    def __init__(self, base: Checkpoint, name: str):
        self._base, self._name = base, name
        self._digests: dict[str, str] = {}
        self._norms: dict[str, float] = {}

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the blocks of one tensor as they are stored; see `Checkpoint.blocks`."""
        digest, squares = Digest(), 0.0
        for block in self._base.blocks(name):
            digest.update(block)
            if block.dtype.is_floating_point:
                squares += torch.linalg.vector_norm(block.to(torch.float32)).item() ** 2
            yield block
        self._digests[name] = digest.hexdigest()
        if self._base[name].dtype.is_floating_point:
            self._norms[name] = math.sqrt(squares)

    def origin(self) -> Origin:
        """Return the base's identity, and the norms of its tensors that were read until now."""
        norms = dict(self._norms)
        for name in set(self._base) - set(self._digests):
            for _ in self.blocks(name):
                pass
        revision = revision_of(self._base.folder)
        identity = BaseIdentity(
            id=self._name.partition("@")[0] if revision else _as_folder(self._name),
            fingerprint=combined_fingerprint(self._base.shapes, self._digests),
            revision=revision,
        )
        return Origin(identity, norms)


def _as_folder(name: str) -> str:
    """Return the name of a folder as recipes write it: `models/x` would be taken for a Hub id."""
    is_bare = Path(name).is_dir() and not name.startswith((".", "/", "~"))
    return f"./{name}" if is_bare else name
