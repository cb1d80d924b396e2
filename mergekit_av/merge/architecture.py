"""Which tensors a merge reads and writes: those of its base, by the base's own names.

mergekit merges what its definition of an architecture lists. Tensors that the definition lacks (biases
of a Llama, the multi-token head of a Qwen) would go missing in silence, and mixtures of experts would
come out under the names that transformers has in memory, which other engines do not know. A sum of
alignment vectors has all tensors that the base has; where mergekit's definition has others, the
architecture is made of the base's checkpoint.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from mergekit.architecture import (
    ModelArchitecture,
    arch_info_for_config,
)
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from transformers import PretrainedConfig

from mergekit_av.errors import AVError
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.vectors.kinds import open_delta

from .checkpoint_architecture import definition_of, described_weights
from .slices import check_modules, check_ranges, sliced

# Bases whose merges have an architecture from here.
_planned: set[Path] = set()
# What mergekit itself asks.
GetArchitecture = Callable[[MergeConfiguration, MergeOptions], ModelArchitecture]


def architecture_of(
    config: MergeConfiguration, options: MergeOptions, ask: GetArchitecture
) -> ModelArchitecture:
    """Return mergekit's own definition where a merge by it has the base's tensors, else one made of these.

    Args:
        ask: what mergekit itself asks.

    Raises:
        AVError: the recipe names modules or layers that this base does not have, or the base has a
            tensor that mergekit cannot carry over.
    """
    base = config.base_model or next(
        (piece.base_model for piece in config.slices or () if piece.base_model), None
    )
    if base is None:
        return ask(config, options)  # the recipe's own check says what is missing
    whole = base.merged(
        options.lora_merge_cache, options.trust_remote_code, options.lora_merge_dtype
    )
    folder = Path(whole.local_path(cache_dir=options.transformers_cache))
    try:
        checkpoint = Checkpoint(folder)
    except AVError:
        return ask(config, options)  # planning says in one line what is wrong with the base
    own = base.config(trust_remote_code=options.trust_remote_code)
    known = _known(config, options, own, ask)
    _planned.add(folder)
    if known and _suffices(known, own, [checkpoint, *_vectors(config, options, base)]):
        check_modules(config, known, folder)
        for name, pieces in sliced(config, known):
            check_ranges(pieces, known.modules[name].architecture.num_layers(own), folder)
        return known
    made = definition_of(checkpoint, own, known)
    check_modules(config, made, folder)
    for name, pieces in sliced(config, made):
        architecture = made.modules[name].architecture
        check_ranges(pieces, architecture.num_layers(own), folder)
        architecture.take(pieces, folder)
    return made


def check_planned(base: ModelReference, folder: Path) -> None:
    """Raise AVError where a merge is planned past `architecture_of`, as mergekit-evolve does, and by a
    definition that lacks tensors of the base."""
    if folder in _planned:
        return
    own = base.config()
    known = arch_info_for_config(own) if len(own.architectures or ()) == 1 else None
    if known is None or not _suffices(known, own, [Checkpoint(folder)]):
        raise AVError(
            f"mergekit's definition of the architecture of {folder} has other tensors than it: merge "
            "with mergekit-yaml"
        )


def _known(
    config: MergeConfiguration,
    options: MergeOptions,
    own: PretrainedConfig,
    ask: GetArchitecture,
) -> ModelArchitecture | None:
    """Return mergekit's definition of the base's architecture; None where it has none by that name."""
    if len(own.architectures or ()) != 1 or arch_info_for_config(own) is None:
        return None  # it would make one itself, with the names that transformers has in memory
    return ask(config, options)


def _vectors(config: MergeConfiguration, options: MergeOptions, base: Any) -> list[Collection[str]]:
    """Return the names in the vectors of a recipe, without those of which planning will say what is
    wrong."""
    found = []
    for model in config.referenced_models():
        if model != base and model.lora is None:
            with contextlib.suppress(AVError):
                folder = Path(model.local_path(cache_dir=options.transformers_cache))
                found.append(open_delta(folder).names())
    return found


def _suffices(
    architecture: ModelArchitecture, config: PretrainedConfig, inputs: Sequence[Collection[str]]
) -> bool:
    """Return whether a merge by an architecture would have the tensors that all of its inputs have."""
    there = set(inputs[0])
    if any(set(names) != there for names in inputs):
        return False
    written = {
        weight.name
        for weight in described_weights(architecture, config)
        if not weight.optional or {weight.name, *(weight.aliases or ())} & there
    }
    return written == there
