"""Checkpoints on disk: safetensors files in the Hub's layout, read and written a block at a time.

Only safetensors are read; nothing is ever unpickled.
"""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import EllipsisType

import torch
import xxhash
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from .arithmetic import all_finite
from .errors import AVError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_SIZE = "5GB"  # the Hub's and transformers' default
# Elements read at a time: memory is bounded by a few blocks, however large a tensor is. Fingerprints
# are made of blocks, so another size would not know the vectors there are.
BLOCK = 1 << 20

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
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

    Raises:
        AVError: no folder, no safetensors, a missing shard, a damaged file.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise AVError(f"{folder} is not a folder")
        self.files = [self.folder / name for name in self._file_names()]
        self._infos: dict[str, TensorInfo] = {}
        for file in self.files:
            self._read_header(file)
        if missing := sorted(set(self._weight_map) - set(self._infos)):
            raise AVError(
                f"{self.folder}: {INDEX} says that {missing[0]} is in "
                f"{self._weight_map[missing[0]]}, where it is not: get the checkpoint again"
            )

    def _file_names(self) -> list[str]:
        self._weight_map: dict[str, str] = {}
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

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, on the CPU."""
        with _opened(self[name].file) as tensors:
            return tensors.get_tensor(name)

    def mapped(self) -> dict[str, torch.Tensor]:
        """Every tensor, on the CPU, as a view of its file: values are read when they are used."""
        tensors = {}
        for file in self.files:
            names = [name for name, info in self.items() if info.file == file]
            with _opened(file) as opened:
                tensors |= {name: opened.get_tensor(name) for name in names}
        return tensors

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor's values in order, flat, in pieces of whole rows of about `BLOCK` elements.

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
    """A tensor in memory, flat and in the pieces of `Checkpoint.blocks`; on the tensor's device."""
    for rows, _ in _pieces(tuple(tensor.shape)):
        yield tensor[rows].reshape(-1)


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[slice | EllipsisType, int]]:
    """The rows of one block after another, and how many values they have; all of a tensor that is no
    larger than a block."""
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
    """Name → where its values begin in a safetensors file."""
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


class Digest:
    """A hash of a tensor's values that neither dtype nor sharding of the copy changes.

    Values are widened to float32; blocks in which the lower half of every float32 is zero (all that
    come from bfloat16) are hashed by their upper halves, which says the same in half the bytes.
    The hash (XXH3, 128 bits) guards against mix-ups and damage, not against forgery.
    """

    def __init__(self):
        self._hash = xxhash.xxh3_128()

    def update(self, block: torch.Tensor) -> None:
        """Add a flat block; blocks must come as `Checkpoint.blocks` cuts them."""
        if block.dtype == torch.bfloat16:
            tag, payload = b"2", block.contiguous().view(torch.int16)
        elif block.dtype.is_floating_point and block.dtype != torch.float64:
            bits = block.to(torch.float32).contiguous().view(torch.int32)
            # The first few decide for nearly every block.
            if (bits[:4096] & 0xFFFF).any() or (bits & 0xFFFF).any():
                tag, payload = b"4", bits
            else:
                tag, payload = b"2", (bits >> 16).to(torch.int16)
        else:
            tag, payload = DTYPE_NAMES[block.dtype].encode(), block.contiguous().view(torch.uint8)
        self._hash.update(tag)
        self._hash.update(payload.numpy())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def combined_fingerprint(shapes: Mapping[str, tuple[int, ...]], digests: Mapping[str, str]) -> str:
    """One fingerprint from each tensor's name, shape and digest, in the order of the names."""
    total = xxhash.xxh3_128()
    for name in sorted(digests):
        total.update(json.dumps([name, list(shapes[name]), digests[name]]).encode())
    return total.hexdigest()


def fingerprint(checkpoint: Checkpoint) -> str:
    """32 hexadecimal digits over names, shapes and values widened to float32.

    Remembered within the process for as long as the files do not change.
    """
    return _scan(checkpoint.folder, _state(checkpoint.files))[0]


def non_finite(checkpoint: Checkpoint) -> list[str]:
    """The names of the tensors with NaN or infinite values; remembered like the fingerprint."""
    return _scan(checkpoint.folder, _state(checkpoint.files))[1]


def _state(files: Iterable[Path]) -> tuple:
    stats = ((str(file), file.stat()) for file in files)
    return tuple((file, s.st_size, s.st_mtime_ns, s.st_ino) for file, s in stats)


@lru_cache(maxsize=64)
def _scan(folder: Path, _state: tuple) -> tuple[str, list[str]]:
    """What one reading of all values tells: the fingerprint, and where they are not finite."""
    checkpoint = Checkpoint(folder)

    def read(name: str) -> tuple[str, bool]:
        digest, finite = Digest(), True
        for block in checkpoint.blocks(name):
            digest.update(block)
            finite = finite and all_finite(block)
        return digest.hexdigest(), finite

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = dict(zip(checkpoint, pool.map(read, checkpoint), strict=True))
    shapes = {name: checkpoint[name].shape for name in checkpoint}
    total = combined_fingerprint(shapes, {name: digest for name, (digest, _) in results.items()})
    return total, [name for name, (_, finite) in results.items() if not finite]


class CheckpointWriter:
    """Writes a checkpoint a block at a time, in the Hub's layout (shards and index when large).

    safetensors' own `save_file` wants all tensors of a file in memory. The format is simple enough
    to stream: eight bytes of header length, a JSON header with every offset, the values.

    Args:
        tensors: name → (shape, dtype) of all that will be written, in the order of writing.
        file: write one file of this name, however large; without it model.safetensors or shards.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        file: str | None = None,
    ):
        infos = {
            n: TensorInfo(Path(), tuple(shape), dtype) for n, (shape, dtype) in tensors.items()
        }
        self._folder = folder
        self._plan = split_state_dict_into_shards_factory(
            infos,
            get_storage_size=lambda info: info.nbytes,
            get_storage_id=lambda info: None,
            filename_pattern=(file or SINGLE).replace(".", "{suffix}.", 1),
            max_shard_size=sys.maxsize if file else MAX_SHARD_SIZE,
        )
        # (file, names) in the order in which names are written
        self._files = [(f, names) for f, names in self._plan.filename_to_tensors.items()]
        self._infos = infos
        self._file = None
        self._left: list[str] = []

    def names(self) -> Iterator[str]:
        """The tensors in the order in which their blocks must be given to `write`."""
        for filename, names in self._files:
            # Unbuffered: a buffer would try to write what failed once more when it is closed.
            with open(self._folder / filename, "wb", buffering=0) as self._file:
                self._put(self._header(names))
                yield from names
        if self._plan.is_sharded:
            index = {"metadata": self._plan.metadata, "weight_map": self._plan.tensor_to_filename}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self._folder / INDEX).write_text(text, "utf-8")

    def write(self, block: torch.Tensor) -> None:
        self._put(block.reshape(-1).contiguous().view(torch.uint8).numpy().data)

    def _put(self, content: bytes | memoryview) -> None:
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _header(self, names: list[str]) -> bytes:
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            info = self._infos[name]
            offsets = [offset, offset + info.nbytes]
            header[name] = {
                "dtype": DTYPE_NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": offsets,
            }
            offset = offsets[1]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text
