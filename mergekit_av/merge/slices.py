"""Recipes that put a model together of modules or slices of layers."""

from collections.abc import Iterator
from pathlib import Path

from mergekit.architecture import (
    ModelArchitecture,
)
from mergekit.config import MergeConfiguration, OutputSliceDefinition
from transformers import PretrainedConfig

from mergekit_av.errors import AVError

# Settings that have a value for each layer.
SETTINGS_OF_EACH_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")


def check_modules(
    config: MergeConfiguration, architecture: ModelArchitecture, folder: Path
) -> None:
    """Raise AVError for a recipe whose merge would lack a module, or that means one that is not there."""
    modules = list(architecture.modules)
    if config.slices and len(modules) > 1:
        raise AVError(
            f"{folder} has several modules ({', '.join(modules)}): write `models:` instead of "
            "`slices:`, or slices under `modules:`"
        )
    for module in config.modules or ():
        if module not in modules:
            raise AVError(
                f"the recipe has the module {module!r}, and {folder} has {', '.join(modules)}"
            )
    for module in modules:
        if config.modules and module not in config.modules:
            raise AVError(
                f"the recipe leaves out the module {module!r} of {folder}, and so would the merge: add "
                "it, with `lambda: 0` where it is to stay as it is"
            )


def sliced(
    config: MergeConfiguration, architecture: ModelArchitecture
) -> Iterator[tuple[str, list[OutputSliceDefinition]]]:
    """Yield the name of each module that a recipe puts together of slices, and the slices."""
    for name in architecture.modules:
        pieces = config.modules[name].slices if config.modules else config.slices
        if pieces:
            yield name, pieces


def move_settings(
    config: MergeConfiguration, architecture: ModelArchitecture, out: PretrainedConfig
) -> None:
    """Let what a configuration says of each layer follow the layers of a recipe's slices.

    mergekit changes their number alone. transformers then refuses the configuration, or takes a layer
    for one of another kind.
    """
    for name, pieces in sliced(config, architecture):
        if not architecture.modules[name].architecture.num_layers_config_key():
            continue
        layers = [
            layer
            for piece in pieces
            for source in piece.sources
            if source.model == (piece.base_model or config.base_model)
            for layer in range(*source.layer_range)
        ]
        settings = out.get_text_config()
        for key in SETTINGS_OF_EACH_LAYER:
            value = vars(settings).get(key)  # not of a property, which others decide
            if isinstance(value, list) and max(layers, default=0) < len(value):
                setattr(settings, key, [value[layer] for layer in layers])


def check_ranges(pieces: list[OutputSliceDefinition], count: int, folder: Path) -> None:
    """Raise AVError for slices of layers that the base does not have."""
    for source in (source for piece in pieces for source in piece.sources):
        first, last = source.layer_range
        if not 0 <= first < last <= count:
            raise AVError(
                f"the recipe has the layers {[first, last]} of {source.model}, and {folder} has the "
                f"layers [0, {count}]"
            )
    for piece in pieces:
        if len({last - first for first, last in (s.layer_range for s in piece.sources)}) > 1:
            raise AVError("the sources of a slice must have equally many layers each")
