"""The linear layers of a model, of whose weights a low-rank vector or an adapter has factors."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from transformers.pytorch_utils import Conv1D

from mergekit_av.models.layout import Layout

from .metadata import StoredTensor


def carried_layers(model: torch.nn.Module, layout: Layout) -> list[str]:
    """Return the names of the layers that an adapter carries: the linear ones that PEFT computes as
    such.

    Not the output layer; not the projections in a state space whose kernels read the weight past the
    layer; and not those that are called like an expert's, where transformers keeps the experts in one
    tensor: PEFT would take them for these.
    """
    output = model.get_output_embeddings()
    experts = {
        part.split(".")[-2]
        for group in layout.groups
        if group.converter is not None
        for part in group.disk
        if "." in part
    }
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module is not output
        and _returns_product(module)
        and name.rpartition(".")[2] not in experts
        and not _in_state_space(model, name)
    ]


def _returns_product(layer: torch.nn.Module) -> bool:
    """Return whether a layer returns nothing but a tensor; a router, which may be a linear layer,
    returns more."""
    rows = layer.weight.shape[0 if isinstance(layer, Conv1D) else 1]
    try:
        found = layer(torch.empty(1, 1, rows, dtype=layer.weight.dtype, device=layer.weight.device))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return isinstance(found, torch.Tensor)


def _in_state_space(model: torch.nn.Module, layer: str) -> bool:
    parent, _, own = layer.rpartition(".")
    return own in ("dt_proj", "out_proj") and hasattr(model.get_submodule(parent), "A_log")


def layer_tensors(model: torch.nn.Module, layout: Layout) -> dict[str, str]:
    """Return linear layer → the tensor of the checkpoint that is its weight, and nothing else.

    Without layers whose weight is several tensors of the checkpoint, a part of one, or tied to another.
    """
    tied = {*layout.ties, *layout.ties.values()}
    found = {}
    for layer, module in model.named_modules():
        name = f"{layer}.weight"
        group = layout.by_memory.get(name)
        linear = isinstance(module, torch.nn.Linear | Conv1D) and name not in tied
        if linear and group is not None and group.converter is None:
            found[layer] = group.disk[0]
    return found


def stored_tensors(
    model: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, str]
) -> dict[str, StoredTensor]:
    """Return how a vector with factors of some layers has each tensor of its base.

    Args:
        shapes: of all tensors of the base that have a difference.
        layers: layer → its tensor.
    """
    found = {name: StoredTensor(tuple(shape)) for name, shape in shapes.items()}
    for layer, name in layers.items():
        transposed = isinstance(model.get_submodule(layer), Conv1D)
        found[name] = replace(found[name], layer=layer, transposed=transposed)
    return found
