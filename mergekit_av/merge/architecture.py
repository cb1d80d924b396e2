"""Which tensors a merge reads and writes: those of its base, by the base's own names.

mergekit merges what its definition of an architecture lists. Tensors that the definition lacks (biases
of a Llama, the multi-token head of a Qwen) would go missing in silence, and mixtures of experts would
come out under the names that transformers has in memory, which other engines do not know. A sum of
alignment vectors has all tensors that the base has; where mergekit's definition has others, the
architecture is made of the base's checkpoint.
"""

import contextlib
import functools
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import mergekit.card
import mergekit.merge
from mergekit.architecture import (
    ModelArchitecture,
    ModuleArchitecture,
    ModuleDefinition,
    WeightInfo,
    arch_info_for_config,
)
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration, OutputSliceDefinition
from mergekit.options import MergeOptions
from transformers import PretrainedConfig

from mergekit_av.errors import AVError, printable
from mergekit_av.hub.source import hub_name
from mergekit_av.hub.trust import refuse_adapter_code
from mergekit_av.io.checkpoint import INDEX, Checkpoint
from mergekit_av.io.json import read_json
from mergekit_av.models.load import check_config, layout_of, unread_names
from mergekit_av.vectors.adapter import CONFIG as ADAPTER

from .recipe import METHOD

log = logging.getLogger(__name__)

LAYER = re.compile(r"\.(\d+)\.")
DEFAULT = "default"
# dtypes in which mergekit can be told to carry a tensor over.
CARRIED = ("float32", "bfloat16", "float16", "int64")
# What mergekit copies beside weights and tokenizer, where the base has it.
FILES = ["preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"]

# Settings that have a value for each layer.
OF_EACH_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")

# Bases whose merges have an architecture from here.
_planned: set[Path] = set()

GetArchitecture = Callable[[MergeConfiguration, MergeOptions], ModelArchitecture]


def install() -> None:
    """Let mergekit ask `architecture_of` about recipes of our method; all others go on as they did.

    mergekit 0.1.5 has no registry of architectures by anything but the name in config.json, where an
    entry would change the merges of all methods.
    """
    ask = mergekit.merge.get_architecture_info
    if hasattr(ask, "asks_about_vectors"):
        return

    @functools.wraps(ask)
    def get_architecture_info(config: MergeConfiguration, options: MergeOptions) -> Any:
        if config.merge_method != METHOD:
            return ask(config, options)
        _check_inputs(config, options)
        return architecture_of(config, options, ask)

    get_architecture_info.asks_about_vectors = True
    mergekit.merge.get_architecture_info = get_architecture_info

    make = mergekit.merge._model_out_config

    @functools.wraps(make)
    def out_config(config: MergeConfiguration, arch_info: ModelArchitecture, *rest, **more) -> Any:
        made = make(config, arch_info, *rest, **more)
        if config.merge_method == METHOD:
            _move_settings(config, arch_info, made)
        return made

    mergekit.merge._model_out_config = out_config

    class Planner(mergekit.merge.MergePlanner):
        def plan_to_disk(self, out_path: str) -> Any:
            if self.config.merge_method == METHOD:
                _refuse_input(Path(out_path), self.config, self.options)
                _warn_of_weights(Path(out_path))
            return super().plan_to_disk(out_path)

    mergekit.merge.MergePlanner = Planner


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


def architecture_of(
    config: MergeConfiguration, options: MergeOptions, ask: GetArchitecture
) -> ModelArchitecture:
    """mergekit's own definition where a merge by it has the base's tensors, else one made of these.

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
        _check_modules(config, known, folder)
        for name, pieces in _sliced(config, known):
            _check_ranges(pieces, known.modules[name].architecture.num_layers(own), folder)
        return known
    made = _made_of(checkpoint, own, known)
    _check_modules(config, made, folder)
    for name, pieces in _sliced(config, made):
        architecture = made.modules[name].architecture
        _check_ranges(pieces, architecture.num_layers(own), folder)
        architecture.take(pieces, folder)
    return made


def _check_modules(
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


def _sliced(
    config: MergeConfiguration, architecture: ModelArchitecture
) -> Iterator[tuple[str, list[OutputSliceDefinition]]]:
    """The name of each module that a recipe puts together of slices, and the slices."""
    for name in architecture.modules:
        pieces = config.modules[name].slices if config.modules else config.slices
        if pieces:
            yield name, pieces


def _move_settings(
    config: MergeConfiguration, architecture: ModelArchitecture, out: PretrainedConfig
) -> None:
    """Let what a configuration says of each layer follow the layers of a recipe's slices.

    mergekit changes their number alone. transformers then refuses the configuration, or takes a layer
    for one of another kind.
    """
    for name, pieces in _sliced(config, architecture):
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
        for key in OF_EACH_LAYER:
            value = vars(settings).get(key)  # not of a property, which others decide
            if isinstance(value, list) and max(layers, default=0) < len(value):
                setattr(settings, key, [value[layer] for layer in layers])


def _check_ranges(pieces: list[OutputSliceDefinition], count: int, folder: Path) -> None:
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
    """mergekit's definition of the base's architecture; None where it has none by that name."""
    if len(own.architectures or ()) != 1 or arch_info_for_config(own) is None:
        return None  # it would make one itself, with the names that transformers has in memory
    return ask(config, options)


def _vectors(config: MergeConfiguration, options: MergeOptions, base: Any) -> list[Checkpoint]:
    """The vectors of a recipe; without those of which planning will say what is wrong."""
    found = []
    for model in config.referenced_models():
        if model != base and model.lora is None:
            with contextlib.suppress(AVError):
                found.append(Checkpoint(model.local_path(cache_dir=options.transformers_cache)))
    return found


def _suffices(
    architecture: ModelArchitecture, config: PretrainedConfig, inputs: list[Checkpoint]
) -> bool:
    """Whether a merge by an architecture would have the tensors that all of its inputs have."""
    there = set(inputs[0])
    if any(set(checkpoint) != there for checkpoint in inputs):
        return False
    written = {
        weight.name
        for weight in _described(architecture, config)
        if not weight.optional or {weight.name, *(weight.aliases or ())} & there
    }
    return written == there


def _described(architecture: ModelArchitecture, config: PretrainedConfig) -> list[WeightInfo]:
    """The weights of a definition; none of one that does not know this configuration."""
    try:
        return architecture.all_weights(config)
    except (RuntimeError, AttributeError, TypeError):
        return []


def _made_of(
    base: Checkpoint, config: PretrainedConfig, known: ModelArchitecture | None
) -> ModelArchitecture:
    """An architecture with all tensors of a checkpoint, each in its layer."""
    described = {weight.name: weight for weight in _described(known, config)} if known else {}
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    loose: list[WeightInfo] = []
    layers: dict[str, dict[int, list[WeightInfo]]] = defaultdict(lambda: defaultdict(list))
    for name in base:
        weight = _weight(name, base, described)
        if weight is None:
            continue
        found = LAYER.search(name)
        if found is None:
            loose.append(weight)
        else:
            layers[name[: found.start()]][int(found[1])].append(weight)
    for prefix, numbered in layers.items():
        # Beyond the model's own layers, as where a multi-token head is stored as one more.
        real = count if count in numbered and set(range(count)) <= set(numbered) else None
        if real is not None and len(layers) == 1:
            for number in [n for n in numbered if n >= real]:
                loose += numbered.pop(number)
        if sorted(numbered) != list(range(len(numbered))):
            loose += [weight for some in numbered.values() for weight in some]
            layers[prefix] = {}
    full = {prefix: numbered for prefix, numbered in layers.items() if numbered}
    # Of several stacks of as many layers it is not known whose number config.json has.
    counted = [prefix for prefix, numbered in full.items() if len(numbered) == count]
    modules = {}
    for prefix, numbered in full.items() or [("", {})]:
        name = DEFAULT if len(full) < 2 else prefix
        # A checkpoint's order may be another one in each layer: that of its files, and in these.
        ordered = [sorted(numbered[n], key=lambda w: w.name) for n in range(len(numbered))]
        key = _count_key(config) if counted == [prefix] else ""
        modules[name] = ModuleDefinition(architecture=_OfCheckpoint(name, prefix, ordered, key))
    first = next(iter(modules.values())).architecture
    last = _last(base, full)
    for weight in loose:
        (first.after if weight.name in last else first.before).append(weight)
    return ModelArchitecture(
        modules=modules,
        architectures=[name for name in config.architectures or () if isinstance(name, str)],
        model_type=config.model_type,
        tagalong_files=list(dict.fromkeys([*((known and known.tagalong_files) or ()), *FILES])),
        vocab_size_config_key=known and known.vocab_size_config_key,
    )


def _weight(name: str, base: Checkpoint, described: dict[str, WeightInfo]) -> WeightInfo | None:
    """What mergekit shall know of a tensor; None for one that is left out, as nothing reads it."""
    dtype = str(base[name].dtype).removeprefix("torch.")
    if name in described and base[name].dtype.is_floating_point:
        info = described[name]
        return WeightInfo(name=name, vocabulary_axis=info.vocabulary_axis, optional=True)
    if not base[name].dtype.is_floating_point or name in unread_names(base):
        if dtype not in CARRIED:
            if name in unread_names(base):
                return None
            raise AVError(
                f"{base.folder}: {name} is {dtype}, which mergekit cannot carry over to a merge"
            )
        # It has no difference, and must not be rounded to the recipe's dtype.
        return WeightInfo(name=name, optional=True, force_dtype=dtype)
    return WeightInfo(name=name, optional=True)


def _count_key(config: PretrainedConfig) -> str:
    """Where a configuration has the number of its language model's layers."""
    inner = config.get_text_config()
    within = [key for key in config.sub_configs if getattr(config, key, None) is inner]
    return ".".join([*within, "num_hidden_layers"])


def _last(base: Checkpoint, layers: Collection[str]) -> set[str]:
    """The tensors that a model has after its layers: what a recipe's last slice says holds for them."""
    try:
        layout = layout_of(base)
    except AVError:
        return set()
    order = {name: number for number, name in enumerate(layout.shapes)}
    places = {
        name: min(order.get(owner, 0) for owner in layout.owners(group))
        for name, group in layout.by_disk.items()
    }
    start = max(
        (
            place
            for name, place in places.items()
            if name.startswith(tuple(f"{p}." for p in layers))
        ),
        default=len(order),
    )
    return {name for name, place in places.items() if place > start}


class _OfCheckpoint(ModuleArchitecture):
    """The tensors of one stack of layers, and with the first such stack those that are in none.

    mergekit pairs the tensors of an output layer with those of an input layer by their place in the two
    lists, and asks for output layers by number alone.
    """

    def __init__(self, name: str, prefix: str, layers: list[list[WeightInfo]], count_key: str):
        self._name, self._prefix, self._layers, self._count_key = name, prefix, layers, count_key
        self._more: list[list[WeightInfo]] = []
        self.before: list[WeightInfo] = []
        self.after: list[WeightInfo] = []

    def name(self) -> str:
        return self._name

    def take(self, pieces: list[OutputSliceDefinition], folder: Path) -> None:
        """Prepare for a recipe of slices, which may have more layers than there are.

        Raises:
            AVError: a layer would be put where one is that has other tensors.
        """
        number = 0
        for piece in pieces:
            ranges = [range(*source.layer_range) for source in piece.sources]
            for sources in zip(*ranges, strict=True):
                out = number if number < len(self._layers) else sources[0]
                for source in sources:
                    if self._within(source) != self._within(out):
                        raise AVError(
                            f"{folder}: layer {source} has other tensors than layer {out}: slices "
                            "cannot put one where the other is"
                        )
                if number >= len(self._layers):
                    self._more.append(self._renumbered(out, number))
                number += 1
        beyond = [weight.name for weight in self.before + self.after if self._is_numbered(weight)]
        if number != len(self._layers) and beyond:
            raise AVError(
                f"{folder}: slices must keep its {len(self._layers)} layers, for it has something else as "
                f"one more ({beyond[0]})"
            )
        if number != len(self._layers) and not self._count_key:
            raise AVError(
                f"{folder}: slices of {self._name} must keep its {len(self._layers)} layers, whose number "
                "config.json does not have"
            )

    def _is_numbered(self, weight: WeightInfo) -> bool:
        """Whether a tensor that is in no layer is called as if it were."""
        found = LAYER.search(weight.name)
        return found is not None and weight.name[: found.start()] == self._prefix

    def _within(self, layer: int) -> list[str]:
        """The names of a layer's tensors, without the layer."""
        start = len(f"{self._prefix}.{layer}.")
        return [weight.name[start:] for weight in self._layers[layer]]

    def _renumbered(self, layer: int, number: int) -> list[WeightInfo]:
        return [
            weight.model_copy(update={"name": f"{self._prefix}.{number}.{name}"})
            for weight, name in zip(self._layers[layer], self._within(layer), strict=True)
        ]

    def pre_weights(self, config: PretrainedConfig) -> list[WeightInfo]:
        return self.before

    def post_weights(self, config: PretrainedConfig) -> list[WeightInfo]:
        return self.after

    def layer_weights(self, index: int, config: PretrainedConfig) -> list[WeightInfo]:
        return [*self._layers, *self._more][index]

    def num_layers_config_key(self) -> str:
        """What a recipe of slices must change in config.json: the number of layers, where it is this
        stack's."""
        return self._count_key

    def num_layers(self, config: PretrainedConfig) -> int:
        return len(self._layers)
