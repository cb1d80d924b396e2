"""From two checkpoints to an alignment vector: θ_AV = θ_aligned − θ_base (equation 1).

A block of a tensor at a time: memory does not grow with the model.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mergekit_av.hub.source import resolve, revision_of
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import Digest, combined_fingerprint
from mergekit_av.io.folders import check_vacant
from mergekit_av.models.load import check_config, refuse_codes, refuse_vector

from .adapter import is_adapter, merged
from .counterparts import Counterparts
from .metadata import BaseIdentity
from .vector import AlignmentVector
from .writing import VECTOR, Origin, write_vector


def extract(
    base: str | os.PathLike,
    aligned: str | os.PathLike,
    out: str | os.PathLike,
    *,
    name: str | None = None,
    dtype: str = "bfloat16",
    levels: list[str] | None = None,
    training: dict[str, Any] | None = None,
    base_id: str | None = None,
    overwrite: bool = False,
) -> AlignmentVector:
    """Write the difference of two checkpoints of one architecture as an alignment vector.

    The difference is taken in float32 and rounded once, to `dtype`. Either checkpoint may be
    float32, bfloat16 or float16, sharded or not, its embeddings tied or not, its tensors under the
    names of any release of transformers.

    Args:
        base, aligned: folders or Hub ids. The aligned one may be a PEFT adapter of the base; it is
            merged in memory first, in float32.
        out: the folder to write.
        name: of the dimension; by default the name of the folder.
        dtype: `bfloat16`, or `float32` where the difference is wanted whole.
        levels: of the dimension, best first.
        training: how the aligned model came about, kept in the metadata.
        base_id: what to call the base in the metadata; by default `base` as given.
        overwrite: replace an alignment vector that is already there; the owner's words on its card,
            and its license, are kept.

    Returns:
        The vector, opened.

    Raises:
        AVError: the two do not fit, one is quantised, a difference is NaN or infinite, a file is damaged, or `out`
            cannot be written. Nothing is left behind.
    """
    base_folder, aligned_folder = resolve(base), resolve(aligned)
    refuse_vector(base_folder)
    refuse_vector(aligned_folder)
    if is_adapter(aligned_folder):
        check_vacant(Path(out), overwrite, VECTOR)
        with merged(base_folder, aligned_folder, Path(out)) as whole:
            return extract(
                base_folder,
                whole,
                out,
                name=name,
                dtype=dtype,
                levels=levels,
                training=training,
                base_id=base_id or str(base),
                overwrite=overwrite,
            )
    for file in (base_folder / "config.json", aligned_folder / "config.json"):
        if file.is_file():
            check_config(file)  # an `auto_map` is left out of the vector
    base_checkpoint, aligned_checkpoint = Checkpoint(base_folder), Checkpoint(aligned_folder)
    refuse_codes(base_checkpoint)
    refuse_codes(aligned_checkpoint)
    counterparts = Counterparts(base_checkpoint, aligned_checkpoint)
    aligned_dtypes = {
        str(info.dtype).removeprefix("torch.")
        for info in aligned_checkpoint.values()
        if info.dtype.is_floating_point
    }
    write_vector(
        out,
        Difference(base_checkpoint, counterparts, base_id or str(base)),
        name=name or Path(out).name,
        config=base_folder / "config.json",
        dtype=dtype,
        precision={
            "difference": "of the float32 weights"
            if aligned_dtypes == {"float32"}
            else f"of weights already rounded to {', '.join(sorted(aligned_dtypes))}: changes of "
            "less than half a step are lost",
        },
        levels=levels,
        training=training,
        overwrite=overwrite,
    )
    return AlignmentVector.open(out)


class Difference:
    """θ_aligned − θ_base in float32 (equation 1), and what is learnt of the base on the way.

    Attributes:
        shapes: name → shape of the tensors that have a difference.
    """

    def __init__(self, base: Checkpoint, aligned: Counterparts, base_id: str):
        self._base, self._aligned, self._base_id = base, aligned, base_id
        self._digests: dict[str, str] = {}
        self._norms: dict[str, float] = {}
        self.shapes = {name: base[name].shape for name in aligned.names}

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the differences of one tensor, flat, in the pieces of `Checkpoint.blocks`."""
        digest, squares = Digest(), 0.0
        pairs = zip(self._base.blocks(name), self._aligned.blocks(name), strict=True)
        for old, new in pairs:
            digest.update(old)
            old = old.to(torch.float32)
            squares += torch.linalg.vector_norm(old).item() ** 2
            yield new.to(torch.float32) - old
        self._digests[name] = digest.hexdigest()
        self._norms[name] = math.sqrt(squares)

    def origin(self) -> Origin:
        """Return the base's identity and norms, once the blocks of every tensor were read."""
        for name in set(self._base) - set(self._digests):
            self._digests[name] = _digest(self._base, name)
        revision = revision_of(self._base.folder)
        identity = BaseIdentity(
            id=self._base_id.partition("@")[0] if revision else _as_folder(self._base_id),
            fingerprint=combined_fingerprint(self._base.shapes, self._digests),
            revision=revision,
        )
        return Origin(identity, self._norms)


def _as_folder(name: str) -> str:
    """Return the name of a folder as recipes write it: `models/x` would be taken for a Hub id."""
    is_bare = Path(name).is_dir() and not name.startswith((".", "/", "~"))
    return f"./{name}" if is_bare else name


def _digest(base: Checkpoint, name: str) -> str:
    """Return the digest of a tensor that has no difference."""
    digest = Digest()
    for block in base.blocks(name):
        digest.update(block)
    return digest.hexdigest()
