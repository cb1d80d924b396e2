"""Training factors of low rank instead of all weights, with PEFT, as TRL's own options say it."""

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel
from trl import DPOConfig, ModelConfig

from mergekit_av.errors import AVError
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.models.layout import Layout
from mergekit_av.vectors.layers import carried_layers, layer_tensors

ALL_LINEAR = "all-linear"


def _as_in_trl(name: str) -> Any:
    """Return a field as TRL's ModelConfig, which its own commands take beside DPOConfig, has it."""
    [found] = [each for each in fields(ModelConfig) if each.name == name]
    default = {} if found.default is MISSING else {"default": found.default}
    return field(**default, metadata=dict(found.metadata))


@dataclass
class Arguments(DPOConfig):
    """Hold TRL's DPOConfig, and the fields of its ModelConfig that say how factors are trained.

    Not among them are `lora_modules_to_save` and `use_dora`: what they train has no scale, so no λ.
    """

    use_peft: bool = _as_in_trl("use_peft")
    lora_r: int = _as_in_trl("lora_r")
    lora_alpha: int = _as_in_trl("lora_alpha")
    lora_dropout: float = _as_in_trl("lora_dropout")
    lora_target_modules: list[str] | None = _as_in_trl("lora_target_modules")  # noqa: RUF009
    use_rslora: bool = _as_in_trl("use_rslora")


LORA = tuple(each.name for each in fields(Arguments) if each not in fields(DPOConfig))


def lora_config(arguments: Arguments, model: PreTrainedModel, base: Path) -> LoraConfig | None:
    """Return which factors to train of a model; None where all weights are trained.

    By default those of all linear layers whose factors a vector can hold: not the output layer, and not
    one whose weight is several tensors on disk.

    Args:
        base: the folder that it was loaded from.

    Raises:
        AVError: the model has no such layer.
    """
    if not arguments.use_peft:
        return None
    targets: list[str] | str | None = arguments.lora_target_modules
    if targets is None:
        layout = Layout.of(model, Checkpoint(base).shapes)
        able = layer_tensors(model, layout)
        targets = [layer for layer in carried_layers(model, layout) if layer in able]
        if not targets:
            raise AVError(
                "the base has no linear layer of which factors could be stored: train all its weights, "
                "with --use_peft false"
            )
    elif targets == [ALL_LINEAR]:
        targets = ALL_LINEAR
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=targets,
        use_rslora=arguments.use_rslora,
    )
