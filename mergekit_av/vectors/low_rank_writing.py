"""Write the folder of a low-rank vector: a PEFT adapter, and what makes an alignment vector of it."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn.functional import pad
from tqdm import tqdm

from mergekit_av.errors import AVError
from mergekit_av.io.checkpoint import Checkpoint, all_finite
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.io.folders import whole_folder
from mergekit_av.io.writer import CheckpointWriter
from mergekit_av.provenance import versions

from .factors import Factors
from .low_rank_delta import ADAPTER, FACTORS, WHOLE, factor_shapes
from .metadata import LOW_RANK, Metadata, StoredTensor
from .origin import Origin
from .writing import VECTOR, check_form, describe


class FactoredTensors(Protocol):
    """The tensors of a low-rank vector that is written."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor of the base, and how the vector has it."""

    @property
    def rank(self) -> int:
        """The largest rank of all factors."""

    def factors(self, name: str) -> Factors:
        """Return the factors of a tensor that has a layer, in any dtype, of at most that rank."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return the difference of a tensor that is stored whole, in its shape."""

    def origin(self) -> Origin:
        """Return where the tensors come from; called after all of them were asked for."""

    def difference(self) -> str:
        """Return between which weights the difference was taken, for people; called at the end."""


def write_low_rank(
    out: str | os.PathLike,
    source: FactoredTensors,
    *,
    name: str,
    config: Path,
    dtype: str,
    levels: list[str] | None = None,
    training: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the folder of a low-rank alignment vector; arguments and errors as of
    `write_vector`.

    Factors of a lower rank than others are filled up with zeros, as vLLM reads one rank for all.
    """
    stored, tensors = check_form(dtype, config), source.tensors
    layers = [n for n, tensor in tensors.items() if tensor.layer is not None]
    whole = [n for n, tensor in tensors.items() if tensor.whole]
    norms: dict[str, float] = {}
    unchanged = dict.fromkeys(tensors, 1.0)
    with whole_folder(Path(out), overwrite, VECTOR) as folder:
        file = FACTORS if whole else ADAPTER
        writer = CheckpointWriter(folder, _shapes(source, stored), file=file)

        def filled_factors() -> Iterator[torch.Tensor]:
            for tensor in tqdm(layers, desc=f"Writing {Path(out).name}", unit="layer"):
                factors = source.factors(tensor).to("cpu", stored)
                if not (all_finite(factors.b) and all_finite(factors.a)):
                    raise AVError(f"{tensor}: its factors have NaN or infinite values")
                norms[tensor] = factors.norm()
                unchanged[tensor] = float(norms[tensor] == 0)
                missing = source.rank - factors.rank
                yield pad(factors.b, (0, missing))
                yield pad(factors.a, (0, 0, 0, missing))

        for _, factor in zip(writer.names(), filled_factors(), strict=True):
            writer.write(factor)
        if whole:
            _write_whole(folder, source, whole, stored, norms, unchanged)
        files = [file, *([WHOLE] if whole else [])]
        origin = source.origin()
        described = {n: _without_defaults(tensor) for n, tensor in tensors.items()}
        metadata = Metadata(
            name=name,
            base=origin.base,
            fingerprint=fingerprint(Checkpoint(folder, files)),
            levels=levels or [],
            precision={"dtype": dtype, "difference": source.difference()},
            training=training,
            statistics=_statistics(tensors, norms, unchanged, origin.norms),
            created_with=versions("trl", "peft"),
            low_rank={"rank": source.rank, "tensors": described},
            format_version=LOW_RANK,
        )
        if not whole:
            carried = [tensor for tensor in tensors.values() if tensor.layer is not None]
            # Whole names: no layer is taken for another.
            modules = sorted(str(tensor.layer) for tensor in carried)
            transposed = any(tensor.transposed for tensor in carried)
            write_adapter_config(
                folder, modules, source.rank, (origin.base.id, origin.base.revision), transposed
            )
        describe(folder, metadata, config, Path(out))


def write_adapter_config(
    folder: Path,
    modules: list[str],
    rank: int,
    base: tuple[str, str | None],
    transposed: bool,
    scale: float = 1.0,
) -> None:
    """Write PEFT's adapter_config.json.

    Args:
        modules: the layers, as PEFT is told of them.
        base: what to call the base, and its revision.
        transposed: whether the layers' weights lie the other way round.
        scale: λ at which the adapter acts where nothing else is said.
    """
    from peft import LoraConfig

    alpha = scale * rank
    config = LoraConfig(
        base_model_name_or_path=base[0],
        revision=base[1],
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=rank,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        fan_in_fan_out=transposed,
    )
    config.target_modules = modules  # given above it would become a set, in another order each time
    config.save_pretrained(folder)


def _shapes(
    source: FactoredTensors, dtype: torch.dtype
) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
    """Return what the file of factors holds: B and A of one layer after another."""
    found: dict[str, tuple[tuple[int, int], torch.dtype]] = {}
    for tensor in source.tensors.values():
        if tensor.layer is not None:
            shapes = factor_shapes(tensor, source.rank)
            found |= {name: (shape, dtype) for name, shape in shapes.items()}
    return found


def _write_whole(
    folder: Path,
    source: FactoredTensors,
    names: list[str],
    dtype: torch.dtype,
    norms: dict[str, float],
    unchanged: dict[str, float],
) -> None:
    shapes = {name: (source.tensors[name].shape, dtype) for name in names}
    writer = CheckpointWriter(folder, shapes, file=WHOLE)
    for name in writer.names():
        value = source.tensor(name).to(dtype)
        if not all_finite(value):
            raise AVError(f"{name}: the difference has NaN or infinite values")
        norms[name] = torch.linalg.vector_norm(value.double()).item()
        unchanged[name] = 1 - torch.count_nonzero(value).item() / max(value.numel(), 1)
        writer.write(value)


def _statistics(
    tensors: Mapping[str, StoredTensor],
    norms: Mapping[str, float],
    unchanged: Mapping[str, float],
    base_norms: Mapping[str, float],
) -> dict[str, Any]:
    counts = {name: math.prod(tensor.shape) for name, tensor in tensors.items()}
    total = sum(counts.values())
    zeros = sum(unchanged[name] * count for name, count in counts.items())
    return {
        "weights": total,
        "norm": math.sqrt(sum(norm**2 for norm in norms.values())),
        "base_norm": math.sqrt(sum(n**2 for n in base_norms.values())) if base_norms else None,
        "unchanged": zeros / max(total, 1),
        "tensors": {
            name: {
                "norm": norms.get(name, 0.0),
                "base_norm": base_norms.get(name),
                "unchanged": unchanged[name],
            }
            for name in tensors
        },
    }


def _without_defaults(tensor: StoredTensor) -> dict[str, Any]:
    return {key: value for key, value in asdict(tensor).items() if value}
