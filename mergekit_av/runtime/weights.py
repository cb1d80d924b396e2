"""The weights of a model in memory: whether knobs can turn them, and whose they are."""

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from mergekit_av.errors import AVError
from mergekit_av.hub.source import resolve
from mergekit_av.io.checkpoint import Checkpoint, blocks_of
from mergekit_av.io.fingerprint import Digest, combined_fingerprint, fingerprint
from mergekit_av.models.layout import Layout, named_tensors
from mergekit_av.vectors.vector import AlignmentVector

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def as_merged(delta: torch.Tensor, base: torch.Tensor, copy: bool = False) -> torch.Tensor:
    """Return a difference on the base's device and, where that is narrower, in its dtype: as mergekit
    casts its inputs.

    A wider dtype would change no value, and takes more memory.
    """
    fits = torch.promote_types(delta.dtype, base.dtype) == base.dtype
    return delta.to(base.device, delta.dtype if fits else base.dtype, copy=copy)


def moves(delta: torch.Tensor, base: torch.Tensor) -> bool:
    """Return whether base + λ·delta has other bits than the base; adding 0 to −0 gives 0."""
    return bool(delta.any()) or bool((base.signbit() & (base == 0)).any())


def trace(parameter: torch.Tensor) -> tuple[int, int]:
    """Return what changes whenever a parameter is written to or gets other memory, as far as torch counts."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


def file_identity(file: os.PathLike) -> tuple[int, ...] | None:
    """Return what changes whenever a file is written to or replaced; None where there is none."""
    try:
        stat = os.stat(file)
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def check_plain(model: "PreTrainedModel") -> None:
    """Raise AVError for a model of which a parameter is no plain floating-point tensor in memory."""
    if not isinstance(model, torch.nn.Module):
        raise AVError(f"Knobs needs a model in memory, not {model!r}: load it with transformers")
    if getattr(model, "is_quantized", False):
        raise AVError("the model is quantised: load it in float32, bfloat16 or float16")
    if getattr(model, "peft_config", None):
        raise AVError("the model carries PEFT adapters: make knobs of the model without them")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise AVError(f"{name} is not in memory: load the model without offloading")
        dtype = parameter.dtype
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise AVError(f"{name} is {dtype}: load the model in float32, bfloat16 or float16")
        if type(parameter.data) is not torch.Tensor:
            kind = type(parameter.data).__name__
            raise AVError(f"{name} is a {kind}: load the model neither quantised nor sharded")


def check_base(
    model: "PreTrainedModel",
    weights: Mapping[str, torch.Tensor],
    vectors: Iterable[AlignmentVector],
) -> None:
    """Raise AVError unless a model holds the vectors' own base.

    Its values tell. Those of a model in a narrower dtype than the base's are compared with the
    checkpoint that it says it was loaded from.

    Args:
        weights: the model's, by their names in the checkpoint.
    """
    digests, source = {name: _digest(tensor) for name, tensor in weights.items()}, None
    for vector in vectors:
        names = [name for name in vector.delta.names() if name in digests]
        found = combined_fingerprint(
            {name: tuple(weights[name].shape) for name in names},
            {name: digests[name] for name in names},
        )
        base = vector.metadata.base
        if found != base.fingerprint:
            source = source or _fingerprint_of_source(model)
            found = source or found
        if found != base.fingerprint:
            raise AVError(
                f"{vector.folder} is a vector of {base.id} ({base.fingerprint[:8]}), and these are "
                f"not its weights ({found[:8]}): load that model; if the transfer is meant, pass "
                "transfer=True"
            )


def _digest(tensor: torch.Tensor) -> str:
    digest = Digest()
    for block in blocks_of(tensor):
        digest.update(block.cpu())
    return digest.hexdigest()


def _fingerprint_of_source(model: "PreTrainedModel") -> str | None:
    """Return that of the checkpoint a model was loaded from, where it holds it, cast to its own dtypes."""
    if not model.name_or_path:
        return None
    try:
        folder = resolve(model.name_or_path, getattr(model.config, "_commit_hash", None))
        checkpoint = Checkpoint(folder)
        layout = Layout.of(model, checkpoint.shapes)
    except AVError:
        return None
    if layout.missing or layout.misshapen:
        return None
    tensors = named_tensors(model)
    for group in layout.units:
        read = {name: checkpoint.read(name) for name in group.disk}
        for name, value in layout.to_memory(group, read).items():
            held = tensors[name].detach()
            if not torch.equal(value.to(held.dtype), held.cpu()):
                return None
    return fingerprint(checkpoint)
