"""Write a checkpoint in the Hub's layout, a block at a time."""

import json
import sys
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from .checkpoint import DTYPE_NAMES, INDEX, SINGLE, TensorInfo

MAX_SHARD_SIZE = "5GB"  # the Hub's and transformers' default


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
        self._file: FileIO | None = None
        self._left: list[str] = []

    def names(self) -> Iterator[str]:
        """Yield the tensors in the order in which their blocks must be given to `write`."""
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
        assert self._file is not None, "blocks are written while `names` is iterated"
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _header(self, names: list[str]) -> bytes:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
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
