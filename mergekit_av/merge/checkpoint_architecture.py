"""A definition of an architecture, in mergekit's terms, made of a checkpoint."""

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from mergekit.architecture import (
    ModelArchitecture,
    ModuleArchitecture,
    ModuleDefinition,
    WeightInfo,
)
from mergekit.config import OutputSliceDefinition
from transformers import PretrainedConfig

from mergekit_av.errors import AVError
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.models.load import layout_of, unread_names

LAYER = re.compile(r"\.(\d+)\.")
DEFAULT = "default"
# dtypes in which mergekit can be told to carry a tensor over.
CARRIED = ("float32", "bfloat16", "float16", "int64")
# What mergekit copies beside weights and tokenizer, where the base has it.
FILES = ["preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"]


def described_weights(
    architecture: ModelArchitecture, config: PretrainedConfig
) -> list[WeightInfo]:
    """Return the weights of a definition; none of one that does not know this configuration."""
    try:
        return architecture.all_weights(config)
    except (RuntimeError, AttributeError, TypeError):
        return []


def definition_of(
    base: Checkpoint, config: PretrainedConfig, known: ModelArchitecture | None
) -> ModelArchitecture:
    """Return an architecture with all tensors of a checkpoint, each in its layer."""
    described = (
        {weight.name: weight for weight in described_weights(known, config)} if known else {}
    )
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
        modules[name] = ModuleDefinition(architecture=CheckpointStack(name, prefix, ordered, key))
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
    """Return what mergekit shall know of a tensor; None for one that is left out, as nothing reads
    it."""
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
    """Return where a configuration has the number of its language model's layers."""
    inner = config.get_text_config()
    within = [key for key in config.sub_configs if getattr(config, key, None) is inner]
    return ".".join([*within, "num_hidden_layers"])


def _last(base: Checkpoint, layers: Collection[str]) -> set[str]:
    """Return the tensors that a model has after its layers: what a recipe's last slice says holds
    for them."""
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


class CheckpointStack(ModuleArchitecture):
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
        """Return whether a tensor that is in no layer is called as if it were."""
        found = LAYER.search(weight.name)
        return found is not None and weight.name[: found.start()] == self._prefix

    def _within(self, layer: int) -> list[str]:
        """Return the names of a layer's tensors, without the layer."""
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
        """Return what a recipe of slices must change in config.json: the number of layers, where it
        is this stack's."""
        return self._count_key

    def num_layers(self, config: PretrainedConfig) -> int:
        return len(self._layers)
