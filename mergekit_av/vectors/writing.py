"""Write the folder of an alignment vector."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from mergekit_av.errors import AVError
from mergekit_av.io.checkpoint import INDEX, all_finite
from mergekit_av.io.fingerprint import Digest, combined_fingerprint
from mergekit_av.io.folders import Kind, entries, whole_folder
from mergekit_av.io.json import read_json
from mergekit_av.io.writer import CheckpointWriter
from mergekit_av.provenance import versions
from mergekit_av.text.card import Kept

from .card import FIGURE, vector_card
from .license import license_of
from .low_rank_delta import ADAPTER, ADAPTER_CONFIG, FACTORS, WHOLE
from .metadata import METADATA, Metadata
from .origin import Origin

CARD = "README.md"
# The tensors' files, and what stands beside them, with the figure of `av-sweep --write-card`.
BESIDE = (INDEX, ADAPTER, ADAPTER_CONFIG, FACTORS, WHOLE, METADATA, "config.json", CARD, FIGURE)
OF_VECTOR = re.compile(
    "|".join([r"model(-\d+-of-\d+)?\.safetensors", *(re.escape(name) for name in BESIDE)])
)
VECTOR = Kind(
    "an alignment vector",
    known=lambda folder: (folder / METADATA).is_file(),
    foreign=lambda folder: [
        path for path in entries(folder) if not (OF_VECTOR.fullmatch(path.name) and path.is_file())
    ],
)
VECTOR_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Tensors(Protocol):
    """The tensors of a vector that is written."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of all tensors."""

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the values of one tensor, flat, float32, in the pieces of `Checkpoint.blocks`."""

    def origin(self) -> Origin:
        """Return where the tensors come from; called after the blocks of every tensor were read."""


def write_vector(
    out: str | os.PathLike,
    tensors: Tensors,
    *,
    name: str,
    config: Path,
    dtype: str,
    precision: dict[str, Any],
    levels: list[str] | None = None,
    training: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the folder of an alignment vector.

    Args:
        config: the base's config.json.
        dtype: that values are rounded to, `bfloat16` or `float32`.
        precision: see `Metadata`.

    Raises:
        AVError: a value is NaN or infinite, or `out` is somebody's own or cannot be written.
    """
    stored, shapes = check_form(dtype, config), tensors.shapes
    summaries: dict[str, _Summary] = {}
    with whole_folder(Path(out), overwrite, VECTOR) as folder:
        writer = CheckpointWriter(folder, {n: (shape, stored) for n, shape in shapes.items()})
        bar = tqdm(total=sum(map(math.prod, shapes.values())), unit="w", unit_scale=True)
        with bar:
            bar.set_description(f"Writing {Path(out).name}")
            for tensor in writer.names():
                summary = summaries[tensor] = _Summary()
                for block in tensors.blocks(tensor):
                    rounded = block.to(stored)
                    summary.add(tensor, block, rounded)
                    writer.write(rounded)
                    bar.update(block.numel())
        digests = {tensor: summary.digest.hexdigest() for tensor, summary in summaries.items()}
        origin = tensors.origin()
        metadata = Metadata(
            name=name,
            base=origin.base,
            fingerprint=combined_fingerprint(shapes, digests),
            levels=levels or [],
            precision={"dtype": dtype, **precision},
            training=training,
            statistics=_statistics(summaries, origin.norms),
            created_with=versions("trl"),
        )
        describe(folder, metadata, config, Path(out))


def check_form(dtype: str, config: Path) -> torch.dtype:
    """Return the dtype of a name; AVError for one that no vector has, and for a base without config.json."""
    if dtype not in VECTOR_DTYPES:
        raise AVError(f"a vector's dtype is one of {', '.join(VECTOR_DTYPES)}, not {dtype!r}")
    if not config.is_file():
        raise AVError(f"{config.parent} has no config.json")
    return VECTOR_DTYPES[dtype]


def describe(folder: Path, metadata: Metadata, config: Path, out: Path) -> None:
    """Write what stands beside a vector's tensors: its metadata, its card, its base's config.json.

    Args:
        out: where the folder will be; what its owner wrote on the card of a vector there is kept.
    """
    _copy_config(config, folder / "config.json")
    kept = Kept.at(out / CARD).or_else(Kept(license_of(metadata.base, config.parent)))
    (folder / METADATA).write_text(metadata.to_json(), "utf-8")
    (folder / CARD).write_text(vector_card(metadata, kept=kept), "utf-8")


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
