"""From two checkpoints to an alignment vector: θ_AV = θ_aligned − θ_base (equation 1).

A block of a tensor at a time: memory does not grow with the model.
"""

import importlib.metadata
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mergekit_av.errors import AVError
from mergekit_av.hub.source import resolve, revision_of
from mergekit_av.io.atomic import Kind, check_vacant, entries, whole_folder
from mergekit_av.io.checkpoint import INDEX, Checkpoint, all_finite
from mergekit_av.io.fingerprint import Digest, combined_fingerprint
from mergekit_av.io.json import read_json
from mergekit_av.io.writer import CheckpointWriter
from mergekit_av.models.load import check_config, refuse_codes, refuse_vector
from mergekit_av.text.card import Kept

from .adapter import is_adapter, merged
from .card import FIGURE, vector_card
from .counterparts import Counterparts
from .license import license_of
from .metadata import METADATA, BaseIdentity, Metadata
from .vector import AlignmentVector

CARD = "README.md"
# The tensors' files, and what stands beside them, with the figure of `av-sweep --write-card`.
OF_VECTOR = re.compile(
    rf"model(-\d+-of-\d+)?\.safetensors|{re.escape(INDEX)}|{re.escape(METADATA)}|config\.json"
    rf"|{CARD}|{re.escape(FIGURE)}"
)
VECTOR = Kind(
    "an alignment vector",
    known=lambda folder: (folder / METADATA).is_file(),
    foreign=lambda folder: [
        path for path in entries(folder) if not (OF_VECTOR.fullmatch(path.name) and path.is_file())
    ],
)
VECTOR_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
PACKAGES = ("mergekit-av", "mergekit", "torch", "transformers", "trl")


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
    base_digests: dict[str, str] = {}
    base_norms: dict[str, float] = {}

    def difference(tensor: str) -> Iterator[torch.Tensor]:
        digest, squares = Digest(), 0.0
        pairs = zip(base_checkpoint.blocks(tensor), counterparts.blocks(tensor), strict=True)
        for old, new in pairs:
            digest.update(old)
            old = old.to(torch.float32)
            squares += torch.linalg.vector_norm(old).item() ** 2
            yield new.to(torch.float32) - old
        base_digests[tensor] = digest.hexdigest()
        base_norms[tensor] = math.sqrt(squares)

    def identity() -> BaseIdentity:
        for tensor in set(base_checkpoint) - set(base_digests):
            base_digests[tensor] = _digest(base_checkpoint, tensor)
        shapes = {tensor: base_checkpoint[tensor].shape for tensor in base_checkpoint}
        name = base_id or str(base)
        revision = revision_of(base_folder)
        return BaseIdentity(
            id=name.partition("@")[0] if revision else _as_folder(name),
            fingerprint=combined_fingerprint(shapes, base_digests),
            revision=revision,
        )

    return write_vector(
        out,
        name=name or Path(out).name,
        base=identity,
        config=base_folder / "config.json",
        shapes={tensor: base_checkpoint[tensor].shape for tensor in counterparts.names},
        blocks=difference,
        dtype=dtype,
        precision={
            "difference": "of the float32 weights"
            if aligned_dtypes == {"float32"}
            else f"of weights already rounded to {', '.join(sorted(aligned_dtypes))}: changes of "
            "less than half a step are lost",
        },
        levels=levels,
        training=training,
        base_norms=base_norms,
        overwrite=overwrite,
    )


def write_vector(
    out: str | os.PathLike,
    *,
    name: str,
    base: BaseIdentity | Callable[[], BaseIdentity],
    config: Path,
    shapes: Mapping[str, tuple[int, ...]],
    blocks: Callable[[str], Iterator[torch.Tensor]],
    dtype: str,
    precision: dict[str, Any],
    levels: list[str] | None = None,
    training: dict[str, Any] | None = None,
    base_norms: Mapping[str, float] | None = None,
    overwrite: bool = False,
) -> AlignmentVector:
    """Write an AV folder from its tensors' values, given as flat float32 blocks.

    Args:
        base: the base's identity, or what returns it once every block has been read.
        config: the base's config.json.
        blocks: a tensor's name → its values, cut as `Checkpoint.blocks` cuts them.
        base_norms: filled by `blocks` with the norm of each base tensor, where it is known.
    """
    if dtype not in VECTOR_DTYPES:
        raise AVError(f"a vector's dtype is one of {', '.join(VECTOR_DTYPES)}, not {dtype!r}")
    if not config.is_file():
        raise AVError(f"{config.parent} has no config.json")
    stored = VECTOR_DTYPES[dtype]
    summaries: dict[str, _Summary] = {}
    with whole_folder(Path(out), overwrite, VECTOR) as folder:
        writer = CheckpointWriter(folder, {n: (shape, stored) for n, shape in shapes.items()})
        bar = tqdm(total=sum(map(math.prod, shapes.values())), unit="w", unit_scale=True)
        with bar:
            bar.set_description(f"Writing {Path(out).name}")
            for tensor in writer.names():
                summary = summaries[tensor] = _Summary()
                for block in blocks(tensor):
                    rounded = block.to(stored)
                    summary.add(tensor, block, rounded)
                    writer.write(rounded)
                    bar.update(block.numel())
        digests = {tensor: summary.digest.hexdigest() for tensor, summary in summaries.items()}
        metadata = Metadata(
            name=name,
            base=base() if callable(base) else base,
            fingerprint=combined_fingerprint(shapes, digests),
            levels=levels or [],
            precision={"dtype": dtype, **precision},
            training=training,
            statistics=_statistics(summaries, base_norms or {}),
            created_with={package: _version(package) for package in PACKAGES},
        )
        _copy_config(config, folder / "config.json")
        # What the owner wrote on the card of a vector that is replaced holds for the new one.
        kept = Kept.at(Path(out) / CARD).or_else(Kept(license_of(metadata.base, config.parent)))
        (folder / METADATA).write_text(metadata.to_json(), "utf-8")
        (folder / CARD).write_text(vector_card(metadata, kept=kept), "utf-8")
    return AlignmentVector.open(out)


def _as_folder(name: str) -> str:
    """The name of a folder as recipes write it: `models/x` would be taken for a Hub id."""
    is_bare = Path(name).is_dir() and not name.startswith((".", "/", "~"))
    return f"./{name}" if is_bare else name


def _copy_config(source: Path, target: Path) -> None:
    """Copy a base's config.json, without what it says of code in its own repository."""
    content = read_json(source)
    if content.pop("auto_map", None) is None:
        shutil.copyfile(source, target)
    else:
        target.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


class _Summary:
    """What is learnt of one tensor of the vector while it is written."""

    def __init__(self):
        self.digest, self.squares, self.zeros, self.count = Digest(), 0.0, 0, 0

    def add(self, name: str, block: torch.Tensor, rounded: torch.Tensor) -> None:
        if not all_finite(rounded):
            raise AVError(f"{name}: the difference has NaN or infinite values; is the model whole?")
        self.squares += torch.linalg.vector_norm(block).item() ** 2
        self.zeros += block.numel() - int(torch.count_nonzero(block))
        self.count += block.numel()
        self.digest.update(rounded)


def _statistics(summaries: dict[str, _Summary], base_norms: Mapping[str, float]) -> dict[str, Any]:
    count = sum(s.count for s in summaries.values())
    return {
        "weights": count,
        "norm": math.sqrt(sum(s.squares for s in summaries.values())),
        "base_norm": math.sqrt(sum(n**2 for n in base_norms.values())) if base_norms else None,
        "unchanged": sum(s.zeros for s in summaries.values()) / max(count, 1),
        "tensors": {
            name: {
                "norm": math.sqrt(s.squares),
                "base_norm": base_norms.get(name),
                "unchanged": s.zeros / max(s.count, 1),
            }
            for name, s in summaries.items()
        },
    }


def _digest(base: Checkpoint, name: str) -> str:
    """Of a tensor that has no difference."""
    digest = Digest()
    for block in base.blocks(name):
        digest.update(block)
    return digest.hexdigest()


def _version(package: str) -> str:
    return importlib.metadata.version(package)
