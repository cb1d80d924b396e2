"""From two checkpoints to an alignment vector: θ_AV = θ_aligned − θ_base (equation 1).

A block of a tensor at a time: memory does not grow with the model.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mergekit_av.errors import UsageError
from mergekit_av.hub.source import resolve
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.folders import check_vacant
from mergekit_av.models.load import check_config, refuse_codes, refuse_vector

from .adapter import AdapterDifference, NotLowRank, check_adapter, is_adapter, merged
from .compression import Compressed
from .counterparts import Counterparts
from .low_rank_writing import write_low_rank
from .origin import BaseReader, Origin
from .vector import AlignmentVector
from .writing import VECTOR, write_vector

log = logging.getLogger(__name__)


def extract(
    base: str | os.PathLike,
    aligned: str | os.PathLike,
    out: str | os.PathLike,
    *,
    name: str | None = None,
    dtype: str | None = None,
    rank: int | None = None,
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
        base, aligned: folders or Hub ids. The aligned one may be a PEFT adapter of the base. The
            factors of a LoRA adapter are kept, and with them its size; any other is merged in memory
            first, in float32, and becomes a vector of whole tensors.
        out: the folder to write.
        name: of the dimension; by default the name of the folder.
        dtype: `bfloat16`, or `float32` where the difference is wanted whole. By default bfloat16; for
            the factors of an adapter what holds them without loss.
        rank: of an aligned model, not an adapter: keep of each linear layer's difference the nearest
            matrix of this rank, as factors, and nothing of the other tensors.
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
    described: dict[str, Any] = {
        "name": name or Path(out).name,
        "config": base_folder / "config.json",
        "levels": levels,
        "training": training,
        "overwrite": overwrite,
    }
    if is_adapter(aligned_folder):
        if rank is not None:
            raise UsageError("--rank goes with an aligned model; an adapter has its own rank")
        check_vacant(Path(out), overwrite, VECTOR)
        try:
            return _of_adapter(
                base_folder, aligned_folder, out, dtype, base_id or str(base), described
            )
        except NotLowRank as reason:
            log.info("%s becomes a vector of whole tensors: %s", aligned, reason)
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
    difference = Difference(base_checkpoint, counterparts, base_id or str(base))
    of = (
        "of the float32 weights"
        if aligned_dtypes == {"float32"}
        else f"of weights already rounded to {', '.join(sorted(aligned_dtypes))}: changes of "
        "less than half a step are lost"
    )
    dtype = dtype or "bfloat16"
    if rank is None:
        write_vector(out, difference, dtype=dtype, precision={"difference": of}, **described)
    else:
        write_low_rank(
            out, Compressed(base_checkpoint, difference, rank, of), dtype=dtype, **described
        )
    return AlignmentVector.open(out)


def _of_adapter(
    base: Path,
    adapter: Path,
    out: str | os.PathLike,
    dtype: str | None,
    base_id: str,
    described: dict[str, Any],
) -> AlignmentVector:
    """Write the vector of a LoRA adapter, of its own factors.

    Raises:
        NotLowRank: it has none, or not in a form that a vector can have.
        AVError: see `extract`.
    """
    check_adapter(adapter)
    check_config(base / "config.json")
    checkpoint = Checkpoint(base)
    refuse_codes(checkpoint)
    difference = AdapterDifference(checkpoint, adapter, base_id)
    write_low_rank(out, difference, dtype=dtype or difference.dtype, **described)
    return AlignmentVector.open(out)


class Difference:
    """θ_aligned − θ_base in float32 (equation 1), and what is learnt of the base on the way.

    Attributes:
        shapes: name → shape of the tensors that have a difference.
    """

    def __init__(self, base: Checkpoint, aligned: Counterparts, base_id: str):
        self._reader, self._aligned = BaseReader(base, base_id), aligned
        self.shapes = {name: base[name].shape for name in aligned.names}

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the differences of one tensor, flat, in the pieces of `Checkpoint.blocks`."""
        for old, new in zip(self._reader.blocks(name), self._aligned.blocks(name), strict=True):
            yield new.to(torch.float32) - old.to(torch.float32)

    def origin(self) -> Origin:
        """Return the base's identity and norms, once the blocks of every tensor were read."""
        return self._reader.origin()
