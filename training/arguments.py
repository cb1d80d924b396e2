"""The settings of a training: TRL's DPOConfig, with the paper's values as defaults."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from trl import DPOConfig, TrlParser

from mergekit_av.errors import AVError

from .defaults import DEFAULTS


class _Parser(TrlParser):
    """TrlParser that ends in one line instead of the help of two hundred options."""

    def error(self, message: str):
        raise click.UsageError(message)


def training_arguments(
    options: Sequence[str] = (), config: Path | None = None, **overrides: Any
) -> DPOConfig:
    """A DPOConfig from the defaults, then a YAML file, then options of the command line.

    Args:
        options: as typed, under TRL's own names: `["--learning_rate", "2e-5"]`; dashes in names
            will do as well.
        config: a YAML mapping of the same names.
        overrides: values that neither may change.

    Raises:
        click.UsageError: an option that DPOConfig does not have, or a value it does not take.
        AVError: the YAML file cannot be used, or the values contradict one another.
    """
    parser = _Parser(DPOConfig)
    defaults = {**DEFAULTS, "use_cpu": torch.accelerator.current_accelerator() is None}
    if config is not None:
        defaults.update(_read_config(config))
    unknown = parser.set_defaults_with_config(**{**defaults, **overrides})
    if unknown:
        raise AVError(f"{config}: DPOConfig has no field {unknown[0].removeprefix('--')!r}")
    try:
        arguments, rest = parser.parse_args_into_dataclasses(
            list(options), look_for_args_file=False, return_remaining_strings=True
        )
    except (ValueError, TypeError) as error:
        raise AVError(f"these settings do not work together: {_one_line(error)}") from error
    if rest:
        raise click.UsageError(
            f"No such option or argument: {rest[0]}, neither ours nor DPOConfig's"
        )
    if not math.isfinite(arguments.beta) or arguments.beta <= 0:
        raise AVError(f"--beta must be a positive number, not {arguments.beta}")
    return arguments


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AVError(f"{path} cannot be read as YAML: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise AVError(f"{path} must be a mapping of DPOConfig's fields")
    return content


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
