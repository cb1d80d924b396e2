"""Extracting an alignment vector: time against copying the same bytes, and peak memory.

Time: `extract` on the default base and a float32 aligned model, against a plain program that reads
both checkpoints tensor by tensor and writes as many bytes as the vector has; both end with fsync,
both read from the page cache. Memory: on random sharded checkpoints with the shapes of TinyLlama.
"""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
from measure import (
    MEGABYTE,
    PeakMemory,
    Run,
    interleaved,
    machine,
    process_memory,
    ratios,
    spread,
    verdict,
)

import mergekit_av

TIME_TARGET = 2.0
MEMORY_TARGET = 3.0
SINGLE = "model.safetensors"


@click.command(context_settings={"show_default": True})
@click.option("--repeat", type=click.IntRange(min=1), default=5, help="Measured runs of each side.")
@click.option(
    "--base", help="Base model in one file: a folder or Hub id.  [default: the default base]"
)
@click.option("--gigabytes", default=2.0, help="Size of the checkpoints that memory is shown on.")
def main(repeat, base, gigabytes):
    """Time of an extraction against copying, and its peak memory above the imports."""
    click.echo(machine())
    compare_time(base, repeat)
    for dtype in ("bfloat16", "float32"):
        show_memory(dtype, gigabytes)


def compare_time(base: str | None, repeat: int) -> None:
    from mergekit_av.hub.source import resolve
    from mergekit_av.models.default_base import base_or_default

    with tempfile.TemporaryDirectory() as scratch:
        folder = resolve(base_or_default(base))
        aligned, out = Path(scratch) / "aligned", Path(scratch) / "out"
        fabricate_aligned(folder, aligned)
        sides = {
            "copy": lambda: timed(copy, folder, aligned, out),
            "extract": lambda: timed(extract, folder, aligned, out),
        }
        runs = interleaved(sides, repeat)
    seconds = {name: [run.seconds for run in some] for name, some in runs.items()}
    ratio = ratios(seconds["extract"], seconds["copy"])
    click.echo(f"base {base or 'SmolLM2-135M-Instruct (default base)'}, {repeat} rounds")
    for name, values in seconds.items():
        click.echo(f"{name}: {spread(values)} s")
    click.echo(f"  time ratio {spread(ratio)}, {verdict(ratio, TIME_TARGET)}")


def timed(work, base: Path, aligned: Path, out: Path) -> Run:
    start = time.perf_counter()
    work(base, aligned, out)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return Run(seconds)


def extract(base: Path, aligned: Path, out: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        mergekit_av.extract(base, aligned, out)


def copy(base: Path, aligned: Path, out: Path) -> None:
    """Read both checkpoints through one buffer, write the base's tensors, fsync."""
    out.mkdir()
    with (
        open(base / SINGLE, "rb") as first,
        open(aligned / SINGLE, "rb") as second,
        open(out / SINGLE, "wb") as copied,
    ):
        header, places = read_header(first)
        _, other_places = read_header(second)
        copied.write(header)
        buffer = bytearray(max(size for _, size in [*places.values(), *other_places.values()]))
        for name in sorted(places, key=places.get):
            read_into(buffer, second, *other_places[name])
            copied.write(read_into(buffer, first, *places[name]))
        copied.flush()
        os.fsync(copied.fileno())


def read_header(file) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header's bytes, and where each tensor's bytes are: (offset in the file, size)."""
    length = file.read(8)
    text = file.read(int.from_bytes(length, "little"))
    tensors = json.loads(text)
    tensors.pop("__metadata__", None)
    begin = 8 + len(text)
    offsets = {name: tensor["data_offsets"] for name, tensor in tensors.items()}
    return length + text, {name: (begin + a, b - a) for name, (a, b) in offsets.items()}


def read_into(buffer: bytearray, file, offset: int, size: int) -> memoryview:
    part = memoryview(buffer)[:size]
    file.seek(offset)
    file.readinto(part)
    return part


def fabricate_aligned(base: Path, folder: Path) -> None:
    """A float32 model near the base, in one file."""
    import torch
    from safetensors.torch import save_file

    from mergekit_av.io.checkpoint import Checkpoint

    folder.mkdir()
    checkpoint = Checkpoint(base)
    values = {name: checkpoint.read(name).float() for name in checkpoint}
    moved = {name: value + 1e-4 * torch.randn_like(value) for name, value in values.items()}
    save_file(moved, folder / SINGLE, metadata={"format": "pt"})


def show_memory(dtype: str, gigabytes: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        base, aligned = Path(scratch) / "base", Path(scratch) / "aligned"
        size, shards, largest = fabricate_sharded(base, dtype, gigabytes, seed=0)
        fabricate_sharded(aligned, dtype, gigabytes, seed=1)
        # A fresh interpreter, so that the memory is the extraction's alone.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            peaks = fresh.submit(extraction_peaks, base, aligned, Path(scratch) / "out").result()
    click.echo(
        f"{dtype}: two checkpoints of {size / 1e9:.2f} GB in {shards} shards, "
        f"largest tensor {largest / MEGABYTE:.0f} MB"
    )
    for kind, peak in peaks.items():
        times = peak / largest
        click.echo(
            f"  {kind} memory above the imports {peak / MEGABYTE:.0f} MB, "
            f"{times:.2f} × the largest tensor, {verdict([times], MEMORY_TARGET)}"
        )


def extraction_peaks(base: Path, aligned: Path, out: Path) -> dict[str, int]:
    """Peak memory of one extraction above what the imports take, in bytes."""
    importlib.import_module("mergekit_av.vectors.extraction")
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the imports' own peak is no part of it
    before = process_memory(os.getpid())
    with PeakMemory(os.getpid()) as memory:
        extract(base, aligned, out)
    return {
        "resident": memory.resident - before["VmRSS"],
        "anonymous": memory.anonymous - before["RssAnon"],
    }


def fabricate_sharded(
    folder: Path, dtype: str, gigabytes: float, seed: int
) -> tuple[int, int, int]:
    """Random weights of TinyLlama's shapes, a shard a layer, with as many layers as the size takes.

    Returns:
        The bytes of all tensors, the number of shards, the bytes of the largest tensor.
    """
    import torch
    from safetensors.torch import save_file

    hidden, middle, keys, vocabulary = 2048, 5632, 256, 32000
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (middle, hidden),
        "mlp.up_proj": (middle, hidden),
        "mlp.down_proj": (hidden, middle),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    ends = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
    }
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), "utf-8")
    weight_map, size, largest, shard = {}, 0, 0, 0
    while size < gigabytes * 1e9:
        shapes = {f"model.layers.{shard - 1}.{n}.weight": shape for n, shape in layer.items()}
        tensors = {
            name: torch.randn(shape, generator=generator).to(getattr(torch, dtype))
            for name, shape in (shapes if shard else ends).items()
        }
        file = f"model-{shard:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))
        sizes = [tensor.nbytes for tensor in tensors.values()]
        size, largest, shard = size + sum(sizes), max(largest, *sizes), shard + 1
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return size, shard, largest


if __name__ == "__main__":
    main()
