"""The arguments of a training: TRL's own, with the defaults of a setting."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from transformers import HfArgumentParser

from mergekit_av.errors import AVError, UsageError
from mergekit_av.io.yaml import read_yaml

from .lora import Arguments
from .settings import COMMON, SETTING, SETTINGS

# Fields that would do nothing, or what is never done here, and the remedy.
REFUSED = {
    "resume_from_checkpoint": "pass --resume: the newest whole checkpoint is found",
    "trust_remote_code": "code that comes with a model is never run",
    "push_to_hub": "pass --push-to-hub ID: the vector goes to the Hub, not the aligned model",
    "hub_token": "a token is no option: run `hf auth login`, or set HF_TOKEN",
}
DTYPES = ("auto", "float32", "bfloat16", "float16")


class _Parser(HfArgumentParser):
    """Parse a dataclass; a wrong option is one line instead of the help of two hundred."""

    def error(self, message: str):
        raise UsageError(message)


def training_arguments(
    options: Sequence[str] | Mapping[str, Any] = (),
    config: Path | None = None,
    setting: str = SETTING,
    **defaults: Any,
) -> Arguments:
    """Return the arguments made of the defaults, then a YAML file, then options.

    Args:
        options: under TRL's own names, a mapping or as typed: `["--learning_rate", "2e-5"]`; dashes
            in typed names will do as well.
        config: a YAML mapping of the same names.
        setting: one of SETTINGS.
        defaults: beside those of settings.py.

    Raises:
        UsageError: an option that DPOConfig does not have, or a value it does not take.
        AVError: the YAML file cannot be used, or the values contradict one another.
    """
    parser = _Parser(Arguments, add_help=False, allow_abbrev=False)
    parser.set_defaults(**{**COMMON, **SETTINGS[setting], **_of_this_machine(), **defaults})
    content = {} if config is None else _read_config(config)
    if isinstance(options, Mapping):
        _check_names(options, "arguments")
        content, options = {**content, **options}, ()
    named = {text.partition("=")[0].lstrip("-").replace("-", "_") for text in options} | {*content}
    if "loss_type" in named:
        parser.set_defaults(loss_weights=None)  # the setting's are of its own losses
    typed = []
    for key, value in content.items():
        if _cannot_be_typed(key, value):
            parser.set_defaults(**{key: value})
        else:
            typed += _as_options(key, value)
    try:
        arguments, rest = parser.parse_args_into_dataclasses(
            [*typed, *options], look_for_args_file=False, return_remaining_strings=True
        )
    except (ValueError, TypeError, NotImplementedError, ImportError, RuntimeError) as error:
        raise AVError(f"these settings do not work: {_one_line(error)}") from error
    if rest:
        raise UsageError(f"no such option or argument: {rest[0]}, neither ours nor TRL's")
    _check(arguments)
    if setting == "lora" and not arguments.use_peft:
        raise UsageError("--setting lora trains factors; to train all weights, --setting spectrum")
    return arguments


def _of_this_machine() -> dict[str, bool]:
    """Return the defaults that the hardware decides: bfloat16 products where it has instructions for them.

    Weights, gradients and optimizer stay float32 in any case.
    """
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        capabilities = torch.cpu.get_capabilities()
        bf16 = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
        return {"use_cpu": True, "bf16": bf16}
    return {"bf16": accelerator.type != "cuda" or torch.cuda.is_bf16_supported(False)}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except OSError as error:
        raise AVError(f"{path} cannot be read as YAML: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise AVError(f"{path} must be a mapping of DPOConfig's fields")
    _check_names(content, path)
    return content


def _check_names(content: Mapping[str, Any], source: str | Path) -> None:
    known = {field.name for field in fields(Arguments) if field.init}
    for key in content:
        if key not in known:
            raise UsageError(f"{source}: DPOConfig has no field {key!r}")


def _cannot_be_typed(key: str, value: Any) -> bool:
    """Tell whether a value of the file has no form on the command line, though the field takes it."""
    parts = get_args(get_type_hints(Arguments)[key])
    if value is None:
        return NoneType in parts
    return isinstance(value, list) and any(get_origin(part) is list for part in parts)


def _as_options(key: str, value: Any) -> list[str]:
    """Return a field of the file as it would be typed, so that one parser checks both."""
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]


def _check(arguments: Arguments) -> None:
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        if isinstance(value, float) and math.isnan(value):
            raise AVError(f"--{field.name} is not a number")
        if field.name in REFUSED and value:
            raise AVError(f"--{field.name} can't be used: {REFUSED[field.name]}")
    _check_loading(arguments)
    if arguments.fsdp and arguments.use_cpu:
        raise AVError(
            "--fsdp can't be used without an accelerator: accelerate would train the whole model in each "
            "process, and not say so"
        )
    if not 0 < arguments.lora_layers <= 1:
        raise AVError(
            f"--lora_layers is a share of more than 0 up to 1, not {arguments.lora_layers}"
        )
    for name in ("learning_rate", "beta", "num_train_epochs"):
        value = getattr(arguments, name)
        if not math.isfinite(value) or value <= 0:
            raise AVError(f"--{name} must be a positive number, not {value}")


def _check_loading(arguments: Arguments) -> None:
    """Refuse what the base cannot be loaded with, or is never loaded with."""
    quantized = arguments.load_in_4bit or arguments.load_in_8bit
    more = arguments.model_init_kwargs or {}
    if (quantized or more) and not arguments.use_peft:
        option = "--load_in_4bit and --load_in_8bit go" if quantized else "--model_init_kwargs goes"
        raise AVError(f"{option} with --use_peft: weights that are trained are in float32")
    if arguments.load_in_4bit and arguments.load_in_8bit:
        raise AVError("--load_in_4bit and --load_in_8bit can't be had at once")
    if more.keys() - {"dtype"} or more.get("dtype", "auto") not in DTYPES:
        raise AVError(
            f"--model_init_kwargs can't be used but for a dtype of {', '.join(DTYPES)}: all else is as "
            "the base says it"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
