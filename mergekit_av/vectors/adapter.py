"""PEFT adapters as aligned models: their factors as they are, or merged with the base where there are
none."""

import contextlib
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mergekit_av.errors import AVError, first_line
from mergekit_av.hub.trust import refuse_adapter_code
from mergekit_av.io.checkpoint import INDEX, SINGLE, Checkpoint
from mergekit_av.io.json import read_json
from mergekit_av.models.layout import Layout
from mergekit_av.models.load import load_model, load_shape

from .factors import Factors
from .layers import layer_tensors, stored_tensors
from .low_rank_delta import ADAPTER as WEIGHTS
from .low_rank_delta import ADAPTER_CONFIG as CONFIG
from .low_rank_delta import factor_names, factor_shapes
from .metadata import StoredTensor
from .origin import BaseReader, Origin
from .writing import VECTOR_DTYPES

OF_LAYER = re.compile(r"base_model\.model\.(.+)\.lora_[AB]\.weight")
OF_MODULE = re.compile(r"base_model\.model\.(.+)")
# Settings that change nothing of what the saved factors mean.
HARMLESS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
# Ways to begin the factors that leave the base as it was.
INITIAL = (True, False, "gaussian", "eva", "orthogonal")


class NotLowRank(Exception):
    """An adapter is no product of two factors in each layer; the message says why."""


class AdapterDifference:
    """What a LoRA adapter adds to its base, read of its files: B·A times its scale in each layer, and the
    modules that were trained whole.

    Attributes:
        tensors: every tensor of the base, and what the adapter has of it.
        rank: the largest of its factors.
        dtype: that holds it without loss where the factors have it: bfloat16 where the factors are in
            it and the scales are powers of two, else float32.

    Raises:
        NotLowRank: it is another kind of adapter, or one of a layer of which no factors can be stored.
        AVError: it does not fit the base, or is damaged.
    """

    def __init__(self, base: Checkpoint, adapter: Path, base_id: str):
        settings = read_json(adapter / CONFIG)
        _check_plain(settings)
        self._base, self._reader = base, BaseReader(base, base_id)
        self._adapter = Checkpoint(adapter, [WEIGHTS])
        model = load_shape(base.folder)
        layout = Layout.of(model, base.shapes)
        layers = sorted({m[1] for name in self._adapter if (m := OF_LAYER.fullmatch(name))})
        able = layer_tensors(model, layout)
        for layer in layers:
            if layer not in able:
                raise NotLowRank(
                    f"it has factors of {layer}, which is no linear layer of {base.folder} whose weight is "
                    "one tensor of its own"
                )
        shapes = {n: i.shape for n, i in base.items() if i.dtype.is_floating_point}
        for name in layout.ignored:
            shapes.pop(name, None)
        found = stored_tensors(model, shapes, {layer: able[layer] for layer in layers})
        self._saved: dict[str, str] = {}
        for name in self._adapter:
            if not OF_LAYER.fullmatch(name):
                own = self._tensor_of(name, layout)
                self._saved[own] = name
                found[own] = replace(found[own], whole=True)
        self.tensors: Mapping[str, StoredTensor] = found
        self._scales = {layer: _scale(settings, layer, self._rank(layer)) for layer in layers}
        self._check_shapes()
        self.rank = max(map(self._rank, layers), default=0)
        if not self.rank:
            raise NotLowRank("it has no factors")
        narrow = all(info.dtype == torch.bfloat16 for info in self._adapter.values())
        powers_of_two = all(math.frexp(scale)[0] == 0.5 for scale in self._scales.values())
        self.dtype = "bfloat16" if narrow and powers_of_two else "float32"

    def factors(self, name: str) -> Factors:
        """Return the factors of a tensor, B times the adapter's scale, in `dtype`."""
        tensor, dtype = self.tensors[name], VECTOR_DTYPES[self.dtype]
        b, a = (self._adapter.read(factor) for factor in factor_names(str(tensor.layer)))
        b = b.double() * self._scales[str(tensor.layer)]
        return Factors(b.to(dtype), a.to(dtype), tensor.transposed)

    def tensor(self, name: str) -> torch.Tensor:
        """Return the difference of a module that was trained whole, float32."""
        return self._adapter.read(self._saved[name]).float() - self._base.read(name).float()

    def origin(self) -> Origin:
        """Return the base's identity, and the norms of its tensors."""
        for name in self.tensors:
            for _ in self._reader.blocks(name):
                pass
        return self._reader.origin()

    def difference(self) -> str:
        """Return what the difference is of."""
        return "an adapter's factors"

    def _rank(self, layer: str) -> int:
        _, a = factor_names(layer)
        return self._adapter[a].shape[0] if a in self._adapter else 0

    def _tensor_of(self, name: str, layout: Any) -> str:
        """Return the tensor of the base that a module was saved for."""
        matched = OF_MODULE.fullmatch(name)
        module = matched[1] if matched else ""
        group = layout.by_memory.get(module)
        if group is None or group.converter is not None or module in layout.ties.values():
            raise NotLowRank(f"it holds {name}, which is no factor of a linear layer")
        return group.disk[0]

    def _check_shapes(self) -> None:
        """Raise AVError unless each tensor of the adapter has the shape that the base's asks for."""
        wanted: dict[str, tuple[int, ...]] = {}
        for own, tensor in self.tensors.items():
            if tensor.layer is not None:
                wanted |= factor_shapes(tensor, self._rank(tensor.layer))
            elif tensor.whole:
                wanted[self._saved[own]] = tensor.shape
        for name, shape in wanted.items():
            found = self._adapter[name].shape if name in self._adapter else "missing"
            if found != shape:
                raise AVError(
                    f"{self._adapter.folder} does not fit {self._base.folder}: {name} is {found}, and "
                    f"the base asks for {shape}"
                )


def _check_plain(settings: Mapping[str, Any]) -> None:
    """Raise NotLowRank for an adapter that does something else than to add B·A."""
    from peft import LoraConfig

    if settings.get("peft_type") != "LORA":
        raise NotLowRank(f"it is of the kind {settings.get('peft_type')}")
    if settings.get("use_dora"):
        raise NotLowRank("DoRA scales the rows of the sum, which is no product of two factors")
    if settings.get("init_lora_weights", True) not in INITIAL:
        raise NotLowRank(f"it was begun with {settings['init_lora_weights']}, which moves the base")
    plain = LoraConfig().to_dict()
    for key, value in settings.items():
        if key not in (*HARMLESS, "init_lora_weights") and value and value != plain.get(key):
            raise NotLowRank(f"it has `{key}`")


def _scale(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """Return what PEFT multiplies B·A of a layer with."""
    from peft.utils.other import get_pattern_key

    patterns = settings.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), layer), settings.get("lora_alpha", 8))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not rank:
        raise AVError(f"the adapter's `lora_alpha` is {alpha!r}, and the rank of {layer} {rank}")
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter and no whole model."""
    return (folder / CONFIG).is_file() and not any((folder / n).is_file() for n in (SINGLE, INDEX))


def check_adapter(adapter: Path) -> None:
    """Raise AVError for an adapter that brings code, or no safetensors."""
    if not (adapter / WEIGHTS).is_file():
        raise AVError(f"{adapter} has no {WEIGHTS}: save the adapter as safetensors")
    refuse_adapter_code(read_json(adapter / CONFIG), adapter / CONFIG)


@contextlib.contextmanager
def merged(base: Path, adapter: Path, beside: Path) -> Iterator[Path]:
    """Yield the model that an adapter makes of its base: a folder that is there for the block.

    Memory and disk: a float32 copy of the base.

    Args:
        beside: the folder is made next to this one.

    Raises:
        AVError: it is no adapter that PEFT can merge with this base.
    """
    from peft import PeftModel

    check_adapter(adapter)
    model = load_model(base, "float32", "cpu")
    try:
        model = PeftModel.from_pretrained(model, adapter, torch_device="cpu")
        model = model.merge_and_unload(safe_merge=True)
    except Exception as error:  # of PEFT's many kinds of adapters each in its own way
        raise AVError(
            f"{adapter} is no adapter that PEFT can merge with {base}: {first_line(error)}"
        ) from error
    beside = beside.absolute()
    with tempfile.TemporaryDirectory(prefix=f".{beside.name}-merged-", dir=beside.parent) as folder:
        model.save_pretrained(folder)
        del model
        yield Path(folder)
