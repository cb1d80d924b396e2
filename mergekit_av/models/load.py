"""From what a user names, a folder or a Hub id, to a folder, a tokenizer, a model."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mergekit_av.errors import AVError, first_line
from mergekit_av.hub.source import resolve
from mergekit_av.hub.trust import QUANTISATIONS, asks_for_flash, refuse_code
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.json import read_json

from .layout import Layout
from .limits import modules_up_to, refuse_counts, within

# A configuration says in milliseconds what it has to say; the first may have to wait for imports.
CONFIG_SECONDS = 120
TOKENIZER_SECONDS = 600
# How many modules, at most, there are for one tensor, and for none; and how many values for one byte
# of the checkpoint, and for none. Real ones have about two modules, and at most two values.
MODULES_PER_TENSOR, MODULES = 50, 10_000
VALUES_PER_BYTE, VALUES = 4, 1 << 28


def check_config(file: Path, known: bool = True) -> dict:
    """Return the content of a config.json, or of another file with settings, before transformers
    reads it.

    Args:
        known: see `refuse_code`.

    Raises:
        AVError: it cannot be read, names code to run, or asks for more than any model has.
    """
    settings = read_json(file)
    refuse_code(settings, file, known)
    refuse_counts(settings, file)
    return settings


def load_model(
    source: str | os.PathLike,
    dtype: str = "float32",
    device: str | None = None,
    quantization: Any = None,
):
    """Load a transformers causal LM in evaluation mode; remote code is never run.

    Args:
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own (the
            widest of them).
        device: a torch device; by default the accelerator if there is one.
        quantization: transformers' BitsAndBytesConfig, where the weights of linear layers are to be
            quantised while they are loaded.
    """
    folder = resolve(source)
    refuse_vector(folder)
    settings = _checked(folder)
    for found in _quantisations(settings):
        method = found.get("quant_method") if isinstance(found, dict) else None
        if method not in QUANTISATIONS:
            raise AVError(
                f"{folder} is quantised ({method}), which is not supported: take it in bfloat16"
            )
    infos = Checkpoint(folder)  # says in one line what is wrong with the files
    device = device or default_device()
    dtype = own_dtype(infos) if dtype == "auto" else dtype
    _refuse_sizes(load_shape(folder), infos)
    more = {}
    if quantization is not None:
        more = {"quantization_config": quantization, "device_map": {"": device}}
    try:
        config = _config(folder)
        model, loaded = _model_class(config).from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,  # else transformers asks on the terminal
            output_loading_info=True,
            **more,
        )
    except Exception as error:  # a config.json has no end of ways to be wrong
        raise AVError(
            f"{source} is no causal LM that transformers can load: {first_line(error)}"
        ) from error
    if missing := sorted(loaded["missing_keys"]):
        # transformers would fill them with random numbers.
        raise AVError(f"{source} has no tensor {missing[0]}, which its config.json asks for")
    if quantization is not None:
        return model.eval()
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise AVError(f"cannot use the device {device!r}: {first_line(error)}") from error


def _config(folder: Path) -> Any:
    """Return what transformers makes of a config.json, which has been looked at for code.

    Raises:
        Exception: it is wrong in one of many ways.
    """
    from transformers import AutoConfig

    settings = read_json(folder / "config.json")
    config = within(
        CONFIG_SECONDS, lambda: AutoConfig.from_pretrained(folder, trust_remote_code=False)
    )
    if asks_for_flash(settings):
        config._attn_implementation = None  # of all its parts
    return config


def _refuse_sizes(shape: Any, checkpoint: Checkpoint) -> None:
    """Raise AVError for a model that takes far more memory than its checkpoint has values for."""
    wanted = sum(tensor.numel() for tensor in (*shape.parameters(), *shape.buffers()))
    there = sum(info.nbytes for info in checkpoint.values())
    if wanted > VALUES_PER_BYTE * there + VALUES:
        raise AVError(
            f"{checkpoint.folder}: its config.json asks for {wanted:,} weights, and its files hold "
            f"{there:,} bytes"
        )


def _model_class(config: Any) -> Any:
    """Return the class that loads a configuration: that of causal LMs, or of those that also see.

    Of some configurations transformers has both; then the architecture that the configuration names
    decides, so that no tensor of it is left out.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    kinds = {
        AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoModelForImageTextToText: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    }
    able = {kind: known[type(config)] for kind, known in kinds.items() if type(config) in known}
    named = [kind for kind, found in able.items() if found.__name__ in (config.architectures or ())]
    return (named or [*able, AutoModelForCausalLM])[0]


def own_dtype(checkpoint: Checkpoint) -> str:
    """Return what a checkpoint's weights are in; the widest of several. transformers' own "auto"
    would believe config.json."""
    dtypes = {name: info.dtype for name, info in checkpoint.items() if info.dtype.is_floating_point}
    if len(set(dtypes.values())) > 1:
        # Old checkpoints hold masks and frequencies in float32, whatever the weights are in.
        for name in layout_of(checkpoint).ignored:
            dtypes.pop(name, None)
    return str(functools.reduce(torch.promote_types, dtypes.values())).removeprefix("torch.")


def refuse_codes(checkpoint: Checkpoint) -> None:
    """Raise AVError for a quantised checkpoint: its tensors are codes, whose differences and sums mean
    nothing without their scales."""
    folder = checkpoint.folder
    remedy = "take the model in bfloat16 or float32, or save it dequantised"
    if (folder / "config.json").is_file():
        for settings in _quantisations(read_json(folder / "config.json")):
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            kind = f" ({method})" if isinstance(method, str) else ""
            raise AVError(
                f"{folder} is quantised{kind}, says its config.json: its tensors are codes, not "
                f"weights; {remedy}"
            )
    for name, info in checkpoint.items():
        weights = (torch.float32, torch.bfloat16, torch.float16)
        if info.dtype.is_floating_point and info.dtype not in weights:
            kind = str(info.dtype).removeprefix("torch.")
            raise AVError(f"{folder}: {name} is {kind}, which is not supported: {remedy}")


def _quantisations(config: Any) -> Iterator[Any]:
    """Yield what a configuration, or one within it, says of quantisation."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key in ("quantization_config", "compression_config") and value:
                yield value
            else:
                yield from _quantisations(value)


def load_shape(source: str | os.PathLike, dtype: str = "float32", tensors: int | None = None):
    """Return what `load_model` loads, without its weights: it takes no memory and computes nothing.

    Args:
        dtype: see `load_model`.
        tensors: how many the model has on disk, where the folder is no checkpoint.

    Raises:
        AVError: config.json is of no causal LM, or of one with far more modules than tensors.
    """
    folder = resolve(source)
    _checked(folder)
    if tensors is None:
        checkpoint = Checkpoint(folder)
        tensors = len(checkpoint)
        dtype = own_dtype(checkpoint) if dtype == "auto" else dtype
    most = MODULES_PER_TENSOR * tensors + MODULES
    try:
        config = _config(folder)
        with torch.device("meta"), modules_up_to(most):
            return _model_class(config).from_config(
                config,
                dtype=getattr(torch, dtype),
                trust_remote_code=False,  # else transformers asks on the terminal
            )
    except Exception as error:  # a config.json has no end of ways to be wrong
        raise AVError(
            f"{source} is no causal LM that transformers can load: {first_line(error)}"
        ) from error


def layout_of(checkpoint: Checkpoint) -> Layout:
    """Return what becomes of each tensor of a checkpoint in the model of the config.json beside it.

    Raises:
        AVError: config.json is of no model that transformers knows.
    """
    return Layout.of(load_shape(checkpoint.folder), checkpoint.shapes)


def unread_names(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the tensors of a checkpoint that nothing reads; none where its config.json does not tell."""
    return _unread_names(checkpoint.folder, frozenset(checkpoint))


@functools.lru_cache(maxsize=8)
def _unread_names(folder: Path, names: frozenset[str]) -> frozenset[str]:
    try:
        return frozenset(layout_of(Checkpoint(folder)).ignored)
    except AVError:
        return frozenset()


def load_tokenizer(source: str | os.PathLike):
    """Load a model's tokenizer, and give it a padding token where it has none."""
    from transformers import AutoTokenizer

    folder = resolve(source)
    _refuse_other_classes(folder)
    try:
        tokenizer = within(
            TOKENIZER_SECONDS,
            lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        )
    except AVError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more precise
        raise AVError(f"{source} has no tokenizer that loads: {first_line(error)}") from error
    if tokenizer is None:
        raise AVError(f"{source} has no tokenizer that loads")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _refuse_other_classes(folder: Path) -> None:
    """Raise AVError for a tokenizer that transformers would load as something else, or with code.

    It takes the class from all that it has, among which are models, with their own ways to load.
    """
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        if not file.is_file():
            continue
        settings = check_config(file)
        name = settings.get("tokenizer_class")
        if name is None:
            continue
        found = tokenizer_class_from_name(name) if isinstance(name, str) else name
        is_tokenizer = isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)
        if not is_tokenizer and found is not None:
            raise AVError(f"{file}: the `tokenizer_class` {name!r} is no tokenizer")


def buffer_names(model) -> set[str]:
    """Return the last parts of the names that only buffers of a model have, e.g. `inv_freq`.

    Old checkpoints hold such tensors, under paths that the model no longer has; nothing reads them.
    """
    buffers, parameters = (
        {name.rpartition(".")[2] for name, _ in tensors}
        for tensors in (model.named_buffers(), model.named_parameters())
    )
    return buffers - parameters


def refuse_vector(folder: Path) -> None:
    """Raise AVError for an alignment vector, which transformers would load as a model without complaint."""
    if (folder / "alignment_vector.json").exists():
        raise AVError(f"{folder} is an alignment vector, not a model: merge it with its base first")


def _checked(folder: Path) -> dict:
    """Return a model's config.json; AVError as well for an architecture that is known to the code
    in its own repository alone."""
    from transformers import CONFIG_MAPPING

    file = folder / "config.json"
    kind = read_json(file).get("model_type")
    return check_config(file, known=isinstance(kind, str) and kind in CONFIG_MAPPING)


def default_device() -> str:
    """Return the accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None else "cpu"
