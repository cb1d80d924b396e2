"""Ways in which a checkpoint or an alignment vector comes to harm, each with what is said of it."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mergekit_av.io.checkpoint import INDEX, SINGLE, Checkpoint
from mergekit_av.io.fingerprint import fingerprint


def edit_tensors(folder: Path, edit: Callable[[dict], None]) -> None:
    """Change the tensors of a single-file checkpoint in place."""
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def edit_json(file: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads(file.read_text("utf-8"))
    edit(content)
    file.write_text(json.dumps(content), "utf-8")


def flip_bit(file: Path, position: int) -> None:
    """Flip one bit of the byte at `position` (negative: from the end)."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << 3
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def split(folder: Path) -> list[str]:
    """Make two shards and an index of a single file; return the names of the shards."""
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, part in shards.items():
        save_file({n: tensors[n] for n in part}, folder / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")
    (folder / SINGLE).unlink()
    return list(shards)


def _lose_shard(folder: Path) -> None:
    (folder / split(folder)[1]).unlink()


def _write_bad(value: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        edit_tensors(folder, lambda tensors: tensors["model.norm.weight"][3:5].fill_(value))
        whole = fingerprint(Checkpoint(folder))
        edit_json(folder / "alignment_vector.json", lambda m: m.update(fingerprint=whole))

    return write


def _pickle(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def _new_format(folder: Path) -> None:
    edit_json(folder / "alignment_vector.json", lambda metadata: metadata.update(format_version=99))


# What happened to an alignment vector → how, and what av-check must say.
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing shard": (_lose_shard, "the shard model-00002-of-00002.safetensors is missing"),
    "truncated": (lambda folder: truncate(folder / SINGLE), "truncated or damaged"),
    "a flipped header": (lambda folder: flip_bit(folder / SINGLE, 8), "truncated or damaged"),
    "a flipped bit": (lambda folder: flip_bit(folder / SINGLE, -1), "not those that were written"),
    "NaN": (_write_bad(torch.nan), "model.norm.weight has NaN or infinite values"),
    "infinity": (_write_bad(-torch.inf), "model.norm.weight has NaN or infinite values"),
    "an unknown format": (_new_format, "format version 99, this mergekit-av reads 1"),
    "only pickles": (_pickle, "may be a pickle"),
    "no weights": (lambda folder: (folder / SINGLE).unlink(), "holds no model.safetensors"),
    "no metadata": (
        lambda folder: (folder / "alignment_vector.json").unlink(),
        "no alignment vector .* looks like a whole model",
    ),
    "a config that is no JSON": (
        lambda folder: truncate(folder / "config.json"),
        "config.json cannot be read",
    ),
}
