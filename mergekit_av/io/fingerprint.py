"""Fingerprints of checkpoints: the same for the same values, whatever dtype and shards hold them."""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch
import xxhash

from .checkpoint import DTYPE_NAMES, Checkpoint, all_finite


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
    """Return 32 hexadecimal digits over names, shapes and values widened to float32.

    Remembered within the process for as long as the files do not change.
    """
    return _scan_once(checkpoint)[0]


def non_finite(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the tensors with NaN or infinite values; remembered like the fingerprint."""
    return _scan_once(checkpoint)[1]


def _state(files: Iterable[Path]) -> tuple:
    stats = ((str(file), file.stat()) for file in files)
    return tuple((file, s.st_size, s.st_mtime_ns, s.st_ino) for file, s in stats)


def _scan_once(checkpoint: Checkpoint) -> tuple[str, list[str]]:
    return _scan(checkpoint.folder, checkpoint.only, _state(checkpoint.files))


@lru_cache(maxsize=64)
def _scan(folder: Path, only: tuple[str, ...], _state: tuple) -> tuple[str, list[str]]:
    """Return what one reading of all values tells: the fingerprint, and where they are not finite."""
    checkpoint = Checkpoint(folder, only)

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
