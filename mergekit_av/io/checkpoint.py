"""Checkpoints on disk: safetensors files in the Hub's layout, read and written a block at a time.

Only safetensors are read; nothing is ever unpickled.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import torch
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError, safe_open

from mergekit_av.errors import AVError

SINGLE, INDEX = SAFETENSORS_SINGLE_FILE, SAFETENSORS_INDEX_FILE
# Elements read at a time: memory is bounded by a few blocks, however large a tensor is. Fingerprints
# are made of blocks, so another size would not know the vectors there are.
BLOCK = 1 << 20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is and what it is like; `offset` is that of its values in the file, in bytes."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int = 0

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Checkpoint(Mapping[str, TensorInfo]):
    """The tensors of a folder, by name: what they are like at once, their values when read.

    Args:
        only: names of the safetensors files to read, instead of a model's.

    Raises:
        AVError: no folder, no safetensors, a missing shard, a damaged file.
    """

    def __init__(self, folder: str | os.PathLike, only: Sequence[str] = ()):
        self.folder = Path(folder)
        self._weight_map: dict[str, str] = {}
        if not self.folder.is_dir():
            raise AVError(f"{folder} is not a folder")
        for name in only:
            if not (self.folder / name).is_file():
                raise AVError(f"{folder} holds no {name}")
        self.only = tuple(only)
        self.files = [self.folder / name for name in only or self._file_names()]
        self._infos: dict[str, TensorInfo] = {}
        for file in self.files:
            self._read_header(file)
        if missing := sorted(set(self._weight_map) - set(self._infos)):
            raise AVError(
                f"{self.folder}: {INDEX} says that {missing[0]} is in "
                f"{self._weight_map[missing[0]]}, where it is not: get the checkpoint again"
            )

    def _file_names(self) -> list[str]:
        if (self.folder / SINGLE).is_file():
            if (self.folder / INDEX).is_file():
                # transformers would read the one, mergekit the other.
                raise AVError(
                    f"{self.folder} holds both {SINGLE} and {INDEX}: remove the stale one, or make the "
                    "model again in an empty folder"
                )
            return [SINGLE]
        if (self.folder / INDEX).is_file():
            try:
                index = json.loads((self.folder / INDEX).read_text("utf-8"))
                self._weight_map = dict(index["weight_map"])
                names = sorted(set(self._weight_map.values()))
                strays = [name for name in names if Path(name).name != name]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise AVError(f"{self.folder / INDEX} is not a safetensors index") from error
            for name in strays:
                raise AVError(f"{self.folder / INDEX} names {name!r}, which is no file beside it")
            for name in names:
                if not (self.folder / name).is_file():
                    raise AVError(f"{self.folder}: the shard {name} is missing")
            return names
        if any(self.folder.glob("*.bin")) or any(self.folder.glob("*.pt*")):
            raise AVError(
                f"{self.folder} has only pickle files, which we never open: save the model as "
                "safetensors (transformers: `model.save_pretrained`)"
            )
        raise AVError(f"{self.folder} holds no {SINGLE}")

    def _read_header(self, file: Path) -> None:
        offsets = _offsets(file)
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no mapping: it has keys() only)
                if self._weight_map and self._weight_map.get(name) != file.name:
                    continue  # the index decides, as it does for mergekit
                part = tensors.get_slice(name)
                dtype = DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise AVError(f"{file}: {name} has the dtype {part.get_dtype()}, not supported")
                shape = tuple(part.get_shape())
                self._infos[name] = TensorInfo(file, shape, dtype, offsets[name])

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, by name."""
        return {name: info.shape for name, info in self.items()}

    @property
    def paths(self) -> list[Path]:
        """All files that the checkpoint is made of: its shards, and their index."""
        return [*self.files, *([self.folder / INDEX] if self._weight_map else [])]

    def read(self, name: str) -> torch.Tensor:
        """Return the whole tensor, on the CPU."""
        with _opened(self[name].file) as tensors:
            return tensors.get_tensor(name)

    def mapped(self) -> dict[str, torch.Tensor]:
        """Every tensor, on the CPU, as a view of its file: values are read when they are used."""
        tensors: dict[str, torch.Tensor] = {}
        for file in self.files:
            names = [name for name, info in self.items() if info.file == file]
            with _opened(file) as opened:
                tensors |= {name: opened.get_tensor(name) for name in names}
        return tensors

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the tensor's values in order, flat, in pieces of whole rows of about `BLOCK`
        elements.

        Where the pieces begin depends on the shape alone. They are read, not mapped: memory stays at
        one block, and a block takes a quarter of the time that its pages would.
        """
        info = self[name]
        with open(info.file, "rb") as file:
            file.seek(info.offset)
            for _, count in _pieces(info.shape):
                block = torch.empty(count, dtype=info.dtype)
                if file.readinto(block.view(torch.uint8).numpy()) < block.nbytes:
                    raise AVError(f"{info.file} was truncated while it was read: get it again")
                yield block


def blocks_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a tensor in memory, flat and in the pieces of `Checkpoint.blocks`; on the tensor's
    device."""
    for rows, _ in _pieces(tuple(tensor.shape)):
        yield tensor[rows].reshape(-1)


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[slice | EllipsisType, int]]:
    """Yield the rows of one block after another, and how many values they have; all of a tensor
    that is no larger than a block."""
    numel = math.prod(shape)
    if not shape or numel <= BLOCK:
        yield ..., numel
        return
    row = numel // shape[0]
    rows = max(1, BLOCK // row)
    for start in range(0, shape[0], rows):
        stop = min(start + rows, shape[0])
        yield slice(start, stop), (stop - start) * row


def _offsets(file: Path) -> dict[str, int]:
    """Return where the values of each tensor begin in a safetensors file, in bytes."""
    with _opened(file), open(file, "rb") as content:  # safetensors checks the header
        length = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(length))
    header.pop("__metadata__", None)
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}


@contextlib.contextmanager
def _opened(file: Path):
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise AVError(f"{file} is truncated or damaged ({error}): get it again") from error


def all_finite(values: torch.Tensor) -> bool:
    """Return whether no value is NaN or infinite."""
    if not values.dtype.is_floating_point or not values.numel():
        return True
    if values.dtype.itemsize == 1:  # torch does not compare float8
        values = values.to(torch.float32)
    # A single pass, many times as fast as `isfinite`.
    return bool(torch.stack(torch.aminmax(values)).isfinite().all())
