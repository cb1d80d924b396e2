"""Training factors of low rank instead of all weights, with PEFT, as TRL's own options say it."""

import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import DPOConfig, ModelConfig, get_quantization_config

from mergekit_av.errors import AVError
from mergekit_av.extras import require
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.models.load import layout_of, load_shape, own_dtype
from mergekit_av.vectors.layers import carried_layers, layer_tensors

ALL_LINEAR = "all-linear"
BLOCK = re.compile(r".*?\.\d+(?=\.)")  # of a layer's name, up to the first number


def _as_in_trl(name: str) -> Any:
    """Return a field as TRL's ModelConfig, which its own commands take beside DPOConfig, has it."""
    [found] = [each for each in fields(ModelConfig) if each.name == name]
    default = {} if found.default is MISSING else {"default": found.default}
    return field(**default, metadata=dict(found.metadata))


@dataclass
class Arguments(DPOConfig):
    """Hold TRL's DPOConfig, and the fields of its ModelConfig that say how factors are trained, and how
    the weights beside them are kept meanwhile.

    Not among them are `lora_modules_to_save` and `use_dora`: what they train has no scale, so no λ.
    """

    use_peft: bool = _as_in_trl("use_peft")
    lora_r: int = _as_in_trl("lora_r")
    lora_alpha: int = _as_in_trl("lora_alpha")
    lora_dropout: float = _as_in_trl("lora_dropout")
    lora_target_modules: list[str] | None = _as_in_trl("lora_target_modules")  # noqa: RUF009
    use_rslora: bool = _as_in_trl("use_rslora")
    lora_layers: float = field(
        default=1.0,
        metadata={
            "help": "Share of the model's layers, from the output on, that get factors, where "
            "lora_target_modules names none."
        },
    )
    # beside the factors
    load_in_8bit: bool = _as_in_trl("load_in_8bit")
    load_in_4bit: bool = _as_in_trl("load_in_4bit")
    bnb_4bit_quant_type: str = _as_in_trl("bnb_4bit_quant_type")
    use_bnb_nested_quant: bool = _as_in_trl("use_bnb_nested_quant")
    bnb_4bit_quant_storage: str | None = _as_in_trl("bnb_4bit_quant_storage")


LORA = tuple(each.name for each in fields(Arguments) if each not in fields(DPOConfig))
QUANTIZED = tuple(name for name in LORA if "load_in" in name or "bnb" in name)


def base_dtype(arguments: Arguments, base: Checkpoint) -> str:
    """Return in which dtype the base is loaded: float32 where its weights are trained.

    Beside factors they are as `model_init_kwargs` says, {"dtype": "bfloat16"}. Where it says nothing,
    weights that are in bfloat16 anyway stay so on an accelerator that computes in it.
    """
    if not arguments.use_peft:
        return "float32"
    if dtype := (arguments.model_init_kwargs or {}).get("dtype"):
        return own_dtype(base) if dtype == "auto" else dtype
    narrow = arguments.bf16 and not arguments.use_cpu and own_dtype(base) == "bfloat16"
    return "bfloat16" if narrow else "float32"


def quantization(arguments: Arguments) -> BitsAndBytesConfig | None:
    """Return how the base's weights are quantised while factors are trained beside them; None where they
    are not.

    Raises:
        AVError: bitsandbytes is not installed.
    """
    if not (arguments.load_in_4bit or arguments.load_in_8bit):
        return None
    require("quantized", "bitsandbytes", to="train beside quantised weights")
    said = {name: getattr(arguments, name) for name in QUANTIZED}
    dtype = "bfloat16" if arguments.bf16 else "float32"
    return get_quantization_config(ModelConfig(**said, dtype=dtype))


def lora_config(arguments: Arguments, base: Path) -> LoraConfig | None:
    """Return which factors to train of a base; None where all weights are trained.

    By default those of the upper layers (`lora_layers`), and of these all linear ones whose factors a
    vector can hold: not the output layer, and not one whose weight is several tensors on disk.

    Args:
        base: its folder.

    Raises:
        AVError: the model has no such layer.
    """
    if not arguments.use_peft:
        return None
    targets: list[str] | str | None = arguments.lora_target_modules
    if targets is None:
        model, layout = load_shape(base), layout_of(Checkpoint(base))
        able = layer_tensors(model, layout)
        targets = [layer for layer in carried_layers(model, layout) if layer in able]
        targets = _upper(targets, arguments.lora_layers)
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


def _upper(names: list[str], share: float) -> list[str]:
    """Return the names in the last of a model's blocks, `model.layers.29` being one.

    Args:
        share: of the blocks, more than 0; one block is returned in any case.
    """
    found = {name: BLOCK.match(name) for name in names}
    block = {name: match[0] if match else name for name, match in found.items()}
    blocks = list(dict.fromkeys(block.values()))
    upper = set(blocks[len(blocks) - max(round(share * len(blocks)), 1) :])
    return [name for name in names if block[name] in upper]
