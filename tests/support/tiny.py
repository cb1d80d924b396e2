"""Tiny random models, tokenizers and aligned models, made from a seed."""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 600


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "phi": (PhiConfig, PhiForCausalLM),
}


@cache
def _vocabulary() -> str:
    """A byte-level BPE trained on the built-in medical records, as JSON."""
    text = (Path(__file__).parents[2] / "mergekit_av/data/builtin/medical.jsonl").read_text("utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders

    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.train_from_iterator(
        text.splitlines(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer.to_str()


def make_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """A tokenizer, trained once per process."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_vocabulary()),
        pad_token="<pad>",
        eos_token="<|end|>",
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


def make_model(
    folder: Path,
    architecture: str = "llama",
    *,
    tied: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    shard_size: str = "5GB",
    seed: int = 0,
    context: int = 1024,
    hidden_size: int = 32,
) -> Path:
    """A random model of two layers, saved as transformers saves it."""
    config_class, model_class = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4 if architecture == "phi" else 2,
        head_dim=hidden_size // 4,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    model_class(config).to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def perturb(base: Path, out: Path, *, scale: float = 1e-3, seed: int = 1, dtype=torch.float32):
    """An "aligned" copy of a single-file model: every weight moved a little."""
    out.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (value.float() + scale * torch.randn(value.shape, generator=generator)).to(dtype)
        for name, value in load_file(base / "model.safetensors").items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for file in base.iterdir():
        if file.suffix in (".json", ".jinja"):
            (out / file.name).write_bytes(file.read_bytes())
    return out
