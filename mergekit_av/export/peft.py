"""An alignment vector as a LoRA adapter in PEFT's format, at a given rank.

Each weight matrix Δ of a linear layer becomes B·A of rank r, the best there is. λ is the adapter's
scale, `lora_alpha / r`: base + scale · B·A, of any sign. An adapter of this form (one rank, no bias,
nothing saved beside the factors) is what PEFT, vLLM and llama.cpp's converter all load.
"""

import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from mergekit_av.errors import AVError, UsageError, first_line
from mergekit_av.io.checkpoint import blocks_of
from mergekit_av.io.folders import Kind, check_vacant, entries, whole_folder
from mergekit_av.io.writer import CheckpointWriter
from mergekit_av.models.layout import Layout
from mergekit_av.models.load import default_device
from mergekit_av.text.card import Kept, with_kept
from mergekit_av.vectors.factors import Factors
from mergekit_av.vectors.layers import carried_layers
from mergekit_av.vectors.license import license_of
from mergekit_av.vectors.low_rank import low_rank, of_factors
from mergekit_av.vectors.low_rank_delta import ADAPTER as WEIGHTS
from mergekit_av.vectors.low_rank_delta import ADAPTER_CONFIG as CONFIG
from mergekit_av.vectors.low_rank_writing import write_adapter_config
from mergekit_av.vectors.metadata import METADATA
from mergekit_av.vectors.writing import VECTOR_DTYPES

from .card import is_of_vector, lora_card
from .loss import RANKS, LoraExport, _kept_at, _parts

if TYPE_CHECKING:
    from mergekit_av.vectors.vector import AlignmentVector

CARD = "README.md"
# PEFT writes adapters of the same three files, and low-rank vectors have them too: only the card tells ours.
ADAPTER = Kind(
    "an adapter of av-export",
    known=lambda folder: (
        (folder / CONFIG).is_file()
        and not (folder / METADATA).exists()
        and is_of_vector(folder / CARD)
    ),
    foreign=lambda folder: [
        path
        for path in entries(folder)
        if not (path.name in (CONFIG, WEIGHTS, CARD) and path.is_file())
    ],
)


def export_lora(
    vector: "AlignmentVector",
    out: str | os.PathLike,
    rank: int | None = None,
    *,
    scale: float = 1.0,
    dtype: str = "bfloat16",
    base_id: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> LoraExport:
    """Write an alignment vector as a PEFT LoRA adapter: the folder `out`.

    The linear layers of the model are carried, its output layer excepted. Experts that the model keeps
    in one tensor, embeddings, output layer,
    norms and biases are left out: each of PEFT, vLLM and llama.cpp would take them in another form,
    or not at all. Matrices whose shorter side is less than `rank` are kept whole and filled up with
    zeros, as vLLM reads one rank for all. Memory: a few times the largest matrix, in float64.

    Of a low-rank vector the factors themselves are written, where `rank` leaves them room.

    Args:
        rank: from 1 to the largest that a matrix can have; of a low-rank vector by default its own.
        scale: λ at which the adapter acts where nothing else is said (`lora_alpha = scale · rank`).
        dtype: `bfloat16`, or `float32` for the factors whole.
        base_id: what the adapter calls its base; by default what the vector calls it.
        device: that decomposes, a torch device with float64; by default the accelerator or the CPU.
        overwrite: replace an adapter that is already there.

    Raises:
        AVError: the vector is damaged, its config.json is of no causal LM that has its tensors, the
            rank or scale is impossible, or `out` cannot be written. Nothing is left behind.
    """
    if not math.isfinite(scale) or scale == 0:
        raise AVError(f"an adapter's λ is finite and not 0, which would be the base: not {scale}")
    if dtype not in VECTOR_DTYPES:
        raise AVError(f"an adapter's dtype is one of {', '.join(VECTOR_DTYPES)}, not {dtype!r}")
    check_vacant(Path(out), overwrite, ADAPTER)
    model = vector.shape_of_base()
    layout = vector.layout(model)
    weights = _Deltas(vector, layout)
    vector.check()
    vector.check_finite()
    layers, own = carried_layers(model, layout), vector.metadata.low_rank
    if own is not None:
        layers = [layer for layer in layers if weights.factors(f"{layer}.weight") is not None]
        rank = own["rank"] if rank is None else rank
    if rank is None:
        raise UsageError(
            f"{vector.folder} is stored whole: name the --rank that the adapter shall have"
        )
    shapes = {layer: model.get_submodule(layer).weight.shape for layer in layers}
    largest = max(map(min, shapes.values()), default=0)
    if not 1 <= rank <= largest:
        raise AVError(
            f"rank {rank} is impossible: the weights of {vector.folder} have ranks of 1 to {largest}"
            if largest
            else f"{vector.folder} has no linear layer that an adapter could carry"
        )
    # Conv1D of GPT-2: a linear layer whose weight lies the other way round.
    transposed = {layer for layer in layers if isinstance(model.get_submodule(layer), Conv1D)}
    device = _device(device)

    with whole_folder(Path(out), overwrite, ADAPTER) as folder:
        # Name of a layer, without its place in the model → the energies of each such matrix.
        losses: dict[str, list[torch.Tensor]] = defaultdict(list)

        def factors() -> Iterator[torch.Tensor]:
            for layer in tqdm(layers, desc=f"Writing {Path(out).name}", unit="layer"):
                found = weights.factors(f"{layer}.weight")
                if found is not None and found.rank <= rank:
                    b, a, energies = of_factors(found, rank)
                else:
                    delta = weights[f"{layer}.weight"].to(device)
                    b, a, energies = low_rank(delta.T if layer in transposed else delta, rank)
                losses[layer.rpartition(".")[2]].append(energies.cpu())
                yield from (a, b)

        writer = CheckpointWriter(folder, _shapes(shapes, transposed, rank, dtype), file=WEIGHTS)
        for _, factor in zip(writer.names(), factors(), strict=True):
            writer.write(factor.to("cpu", VECTOR_DTYPES[dtype]))
        left_out = _left_out(weights, model, {f"{layer}.weight" for layer in layers})
        modules = _target_modules(model, layers)
        base = vector.metadata.base
        named = (base_id, None) if base_id else (base.id, base.revision)
        write_adapter_config(folder, modules, rank, named, bool(transposed), scale)
        export = LoraExport(
            folder=Path(out),
            rank=rank,
            scale=scale,
            dtype=dtype,
            nbytes=(folder / WEIGHTS).stat().st_size,
            parts=_parts(losses, left_out, rank),
            kept_at=_kept_at(losses, left_out, [r for r in RANKS if r < largest] + [largest]),
        )
        card = lora_card(vector.metadata, export, license_of(vector.metadata.base), base_id)
        if (Path(out) / CARD).is_file():
            card = with_kept(card, Kept.at(Path(out) / CARD))
        (folder / CARD).write_text(card, "utf-8")
    return export


def _target_modules(model: torch.nn.Module, layers: Sequence[str]) -> list[str]:
    """Return the layers as PEFT is told of them: by their last names, or whole where others are
    called so."""
    last = {layer.rpartition(".")[2] for layer in layers}
    others = {name for name, _ in model.named_modules()} - set(layers)
    shared = {name.rpartition(".")[2] for name in others} & last
    whole = [layer for layer in layers if layer.rpartition(".")[2] in shared]
    return sorted({*(last - shared), *whole})


def _device(name: str | None) -> torch.device:
    name = name or default_device()
    try:
        device = torch.device("cpu" if name == "mps" else name)  # mps has no float64
        torch.empty(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError) as error:
        raise AVError(f"cannot use the device {name!r}: {first_line(error)}") from error
    return device


class _Deltas:
    """A vector's tensors by their names in the model."""

    def __init__(self, vector: "AlignmentVector", layout: Layout):
        self._delta, self._layout = vector.delta, layout

    def factors(self, name: str) -> Factors | None:
        """Return a weight's factors, where the vector has it as such."""
        group = self._layout.by_memory[name]
        return self._delta.factors(group.disk[0]) if group.converter is None else None

    def __getitem__(self, name: str) -> torch.Tensor:
        group = self._layout.by_memory[name]
        read = {part: self._delta.dense(part) for part in group.disk}
        made = self._layout.to_memory(group, read)
        return next(v for n, v in made.items() if self._layout.ties.get(n, n) == name)


def _shapes(
    shapes: Mapping[str, tuple[int, int]], transposed: Collection[str], rank: int, dtype: str
) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
    """Return what the adapter's file holds, by PEFT's names: A and B of one layer after another."""
    found = {}
    for layer, shape in shapes.items():
        rows, columns = reversed(shape) if layer in transposed else shape
        found[f"base_model.model.{layer}.lora_A.weight"] = (rank, columns), VECTOR_DTYPES[dtype]
        found[f"base_model.model.{layer}.lora_B.weight"] = (rows, rank), VECTOR_DTYPES[dtype]
    return found


def _left_out(
    weights: _Deltas, model: torch.nn.Module, carried: set[str]
) -> dict[str, list[float]]:
    """Kind → the squared norm of each tensor that the adapter does not have."""
    special = {
        id(model.get_output_embeddings()): "output layer",
        id(model.get_input_embeddings()): "embeddings",
    }
    found = defaultdict(list)
    # Tied weights are there once.
    for name, parameter in model.named_parameters():
        if name in carried:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        if name.endswith(".bias"):
            kind = "biases"
        elif id(module) in special:
            kind = special[id(module)]
        else:
            kind = "norms" if parameter.dim() == 1 else "other weights"
        blocks = blocks_of(weights[name])
        found[kind].append(sum(block.double().square().sum().item() for block in blocks))
    return found
