"""transformers' rules for the names and shapes of tensors on disk, applied to one group of them.

Importing the rules takes seconds, so that `layout` imports this module where a model is laid out.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from mergekit_av.errors import AVError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shape = tuple[int, ...]
Tensors = dict[str, torch.Tensor]


def in_order(names: Iterable[str]) -> list[str]:
    """Sort the names of tensors as transformers reads them."""
    return sorted(names, key=dot_natural_key)


class Rules:
    """A model as transformers' conversions ask for it, with the rules of one checkpoint."""

    def __init__(self, model: "PreTrainedModel", used: list[Any]):
        self._model, self._weight_conversions = model, used

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Reader:
    """transformers' rules for the names of one checkpoint.

    Some rules remember what they have seen: names must come in the order in which transformers reads
    them.
    """

    def __init__(self, model, there: Mapping[str, bool], rules: Sequence[Any] | None = None):
        self._rules = get_model_conversion_mapping(model) if rules is None else copy.deepcopy(rules)
        self._there = there
        self._prefix = None if model is None else model.base_model_prefix
        self._renamings = [rule for rule in self._rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in self._rules if isinstance(rule, WeightConverter)]
        self.converters = {
            pattern: rule for rule in self._converters for pattern in rule.source_patterns
        }

    def read(self, name: str) -> tuple[str | None, str | None]:
        """Return a tensor's name in the model, and which input of a converter it is; either may be
        None."""
        target, pattern = rename_source_key(
            name, self._renamings, self._converters, self._prefix, self._there
        )
        if target not in self._there and name in self._there:
            target, pattern = rename_source_key(name, [], [], self._prefix, self._there)
        return (target if target in self._there else None), pattern

    def used(self) -> list[Any]:
        """Return the rules that had a part in it: what transformers undoes when it saves the model."""
        return [rule for rule in self._rules if rule.was_used()]


def converted_shapes(
    converter: WeightConverter,
    target: str,
    patterns: Sequence[str | None],
    shapes: Mapping[str, Shape],
    model: "PreTrainedModel",
) -> dict[str, Shape]:
    """Return the shapes in the model of what a converter makes; see `convert`."""
    blank = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    made = convert(converter, target, patterns, tuple(shapes), blank, model)
    return {name: tuple(tensor.shape) for name, tensor in made.items()}


def convert(
    converter: WeightConverter,
    target: str,
    patterns: Sequence[str | None],
    disk: Sequence[str],
    tensors: Mapping[str, torch.Tensor],
    model: Any,
) -> Tensors:
    """Return what a converter makes of tensors of a checkpoint, by their names in the model.

    Args:
        target: what the converter makes.
        patterns, disk: which of its inputs each tensor is, and the tensor's name.

    Raises:
        AVError: the tensors have other shapes than the converter expects.
    """
    rule = copy.deepcopy(converter)
    rule.collected_tensors.clear()
    for name, pattern in zip(disk, patterns, strict=True):
        rule.add_tensor(target, name, pattern, tensors[name])
    try:
        made = rule.convert(target, model=model, config=model.config)
    except Exception as error:  # of its operations, which differ
        raise AVError(
            f"{disk[0]} and its like do not make {target}: {first_line(error)}"
        ) from error
    return {n: value[0] if isinstance(value, list) else value for n, value in made.items()}


def revert(rules: Rules, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return tensors of a model as they are saved, by the rules by which they were loaded.

    Raises:
        Exception: of transformers' operations, which differ.
    """
    return revert_weight_conversion(rules, dict(tensors))
