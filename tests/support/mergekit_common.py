"""`tests/common.py` for mergekit's own test suite, whose sdist leaves that file out.

Written from what the suite calls; `test_mergekit_suite.py` puts it in place.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from mergekit.config import MergeConfiguration
from mergekit.io import LazyTensorLoader
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def make_picollama(path, vocab_size: int = 64) -> str:
    return save(LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **SIZES)), path)


def make_picogranite(path, vocab_size: int = 64) -> str:
    return save(GraniteForCausalLM(GraniteConfig(vocab_size=vocab_size, **SIZES)), path)


def make_gpt2size(path, vocab_size: int = 64) -> str:
    """As many layers as GPT-2 has, but narrow."""
    config = GPT2Config(
        vocab_size=vocab_size, n_ctx=32, n_positions=32, n_embd=32, n_layer=12, n_head=4
    )
    return save(GPT2LMHeadModel(config), path)


def make_picoLlaVa(path) -> str:
    vision = CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=32, **SIZES)
    text = LlamaConfig(vocab_size=64, **SIZES)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=63)
    return save(LlavaForConditionalGeneration(config), path)


def save(model: PreTrainedModel, path) -> str:
    model.save_pretrained(path)
    return str(path)


def run_and_check_merge(
    config: MergeConfiguration,
    validate: Callable[[str], None] | None = None,
    auto_arch: bool = False,
) -> None:
    """Merge, see that all tensors of the first model are there and have no NaN, then `validate`.

    Args:
        auto_arch: the architecture is one that mergekit infers; nothing else is expected of it.
    """
    with tempfile.TemporaryDirectory() as out:
        run_merge(config, out, MergeOptions(quiet=True))
        assert (Path(out) / "config.json").is_file()
        merged = LazyTensorLoader.from_disk(out)
        for name in merged.index.tensor_paths:
            assert not torch.isnan(merged.get_tensor(name)).any(), name
        if config.models:
            first = LazyTensorLoader.from_disk(config.models[0].model.model.path)
            assert set(first.index.tensor_paths) == set(merged.index.tensor_paths)
        if validate:
            validate(out)
