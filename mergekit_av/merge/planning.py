"""How mergekit is led to plan a merge with alignment vectors: hooks, and checks of the inputs."""

import functools
import logging
from pathlib import Path
from typing import Any

import mergekit.card
import mergekit.merge
from mergekit.architecture import (
    ModelArchitecture,
)
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_av.errors import AVError, printable
from mergekit_av.hub.source import hub_name
from mergekit_av.hub.trust import refuse_adapter_code
from mergekit_av.io.checkpoint import INDEX
from mergekit_av.io.json import read_json
from mergekit_av.models.load import check_config
from mergekit_av.vectors.adapter import CONFIG as ADAPTER
from mergekit_av.vectors.metadata import METADATA
from mergekit_av.vectors.stored import StoredVector

from .architecture import architecture_of
from .loader import read_through
from .recipe import METHOD
from .slices import move_settings

log = logging.getLogger(__name__)


def install() -> None:
    """Let mergekit ask `architecture_of` about recipes of our method; all others go on as they did.

    mergekit 0.1.5 has no registry of architectures by anything but the name in config.json, where an
    entry would change the merges of all methods.
    """
    ask = mergekit.merge.get_architecture_info
    if getattr(mergekit.merge.MergePlanner, "plans_vectors", False):
        return

    @functools.wraps(ask)
    def get_architecture_info(config: MergeConfiguration, options: MergeOptions) -> Any:
        if config.merge_method != METHOD:
            return ask(config, options)
        _check_inputs(config, options)
        _read_vectors_through_deltas(config, options)
        return architecture_of(config, options, ask)

    mergekit.merge.get_architecture_info = get_architecture_info

    make = mergekit.merge._model_out_config

    @functools.wraps(make)
    def out_config(config: MergeConfiguration, arch_info: ModelArchitecture, *rest, **more) -> Any:
        made = make(config, arch_info, *rest, **more)
        if config.merge_method == METHOD:
            move_settings(config, arch_info, made)
        return made

    mergekit.merge._model_out_config = out_config

    class Planner(mergekit.merge.MergePlanner):
        plans_vectors = True

        def plan_to_disk(self, out_path: str) -> Any:
            if self.config.merge_method == METHOD:
                _refuse_input(Path(out_path), self.config, self.options)
                _warn_of_weights(Path(out_path))
            return super().plan_to_disk(out_path)

    mergekit.merge.MergePlanner = Planner


def _read_vectors_through_deltas(config: MergeConfiguration, options: MergeOptions) -> None:
    """Set mergekit's loaders of the vectors, before it makes its own, which know whole tensors alone."""
    for model in config.referenced_models():
        if model.lora is None:
            folder = Path(model.local_path(cache_dir=options.transformers_cache))
            if (folder / METADATA).is_file():
                read_through(model, StoredVector.open(folder).delta)


def _refuse_input(out: Path, config: MergeConfiguration, options: MergeOptions) -> None:
    """Raise AVError for a merge that would be written over what it is made of."""
    for model in config.referenced_models():
        folder = Path(model.local_path(cache_dir=options.transformers_cache, ignore_lora=True))
        if out.exists() and folder.exists() and out.samefile(folder):
            raise AVError(
                f"{out} is an input of the recipe, and the merge would be written over it: choose "
                "another folder"
            )


def _warn_of_weights(out: Path) -> None:
    """Say that mergekit leaves what is in its output folder, where that may be read as weights."""
    if (out / INDEX).exists() or any(out.glob("*.safetensors")):
        log.warning(
            "%s holds weights already: those that this merge does not replace stay beside it, and a "
            "folder with two sets is refused later; better merge into an empty one",
            printable(str(out)),
        )


def _check_inputs(config: MergeConfiguration, options: MergeOptions) -> None:
    """Check what mergekit would load or ask about, before it does.

    Raises:
        AVError: an input is not there, it names code to run, or the card could not be written after
            the merge.
    """
    for model in config.referenced_models():
        for path in filter(None, (model.model, model.lora)):
            if "/" in path.path and not Path(path.path).is_dir() and not hub_name(path.path):
                raise AVError(f"there is no folder {path.path}")
            if options.write_model_card:
                _check_name(path.path)
            folder = Path(
                ModelReference(model=path).local_path(cache_dir=options.transformers_cache)
            )
            if (folder / "config.json").is_file():
                check_config(folder / "config.json")
            elif path is model.model and (folder / ADAPTER).is_file():
                raise AVError(
                    f"{path.path} is an adapter, no alignment vector: make one of it with `av-extract BASE "
                    f"{path.path} OUT`"
                )
            elif path is model.model and folder.is_dir():
                raise AVError(f"{path.path} has no config.json, which every input has")
        if model.lora and (folder / ADAPTER).is_file():
            refuse_adapter_code(read_json(folder / ADAPTER), folder / ADAPTER)


def _check_name(name: str) -> None:
    """Raise AVError for a folder about which mergekit's card would ask the Hub in vain."""
    if not Path(name).is_dir():
        return
    try:
        mergekit.card.is_hf(name)
    except Exception as error:  # of the Hub's client, or of what it uses
        raise AVError(
            f"{name} may be a folder or a Hub id, and the Hub, which mergekit asks for the card, does "
            f"not answer: write ./{name}, or pass --no-write-model-card"
        ) from error
