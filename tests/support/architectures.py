"""Tiny models of many architectures, as transformers saves them and as the Hub has them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY, make_tokenizer

from mergekit_av.io.checkpoint import SINGLE

TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
SIZES = {
    **TOKENS,
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
HEADS = {**SIZES, "head_dim": 8}
GPT = {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
NEOX = {**SIZES}
NEOX.pop("num_key_value_heads")
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@dataclass(frozen=True)
class Architecture:
    """How a tiny model is made.

    Attributes:
        kind: class names begin with it, e.g. `Llama`.
        settings: of its configuration.
        head, text: what the names of the model's and the configuration's classes have beside it.
        on_hub: changes the tensors of the base to what the Hub has; the aligned model is as
            transformers saves it today.
    """

    kind: str
    settings: dict
    head: str = "ForCausalLM"
    text: str = ""
    on_hub: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None

    def build(self) -> transformers.PreTrainedModel:
        config = getattr(transformers, f"{self.kind}{self.text}Config")(**self.settings)
        return self.model_class(config)

    @property
    def model_class(self) -> type[transformers.PreTrainedModel]:
        return getattr(transformers, f"{self.kind}{self.head}")

    def make(self, base: Path, aligned: Path, moved: Callable[[str], bool] = lambda name: True):
        """Save a base, and a model of which every weight that is `moved` (its name in memory tells) is
        another number. Both are float32 and hold numbers that bfloat16 has, so that neither their
        difference nor a sum rounds one."""
        torch.manual_seed(0)
        model = self.build()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):  # not 0, as in a model that was trained
                    parameter.normal_(std=0.1)
        model.to(torch.bfloat16).to(torch.float32).save_pretrained(base)
        model = self.model_class.from_pretrained(base)  # which knows how it was saved
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if moved(name):
                    parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        model.to(torch.bfloat16).to(torch.float32).save_pretrained(aligned)
        if self.on_hub:
            tensors = self.on_hub(load_file(base / SINGLE))
            save_file(tensors, base / SINGLE, metadata={"format": "pt"})
        for folder in (base, aligned):
            make_tokenizer(folder)
        return base, aligned


def gpt2_of_the_hub(tensors: dict) -> dict:
    """Without the prefix, and with the masks of its first release."""
    masks = {f"h.{n}.attn.bias": torch.tril(torch.ones(512, 512))[None, None] for n in range(2)}
    return {name.removeprefix("transformer."): value for name, value in tensors.items()} | masks


def pythia(tensors: dict) -> dict:
    """With what were buffers once: bool, a scalar, frequencies."""
    for layer in range(2):
        attention = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{attention}.bias"] = torch.tril(torch.ones(512, 512, dtype=torch.bool))[
            None, None
        ]
        tensors[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1)
    return tensors


def with_heads_for_more_tokens(tensors: dict) -> dict:
    """Beside the model, as Qwen3.5 and GLM-4.5 have it: under a name and as one more layer."""
    layer = {
        n.replace("layers.1.", "layers.2."): v.clone() for n, v in tensors.items() if ".1." in n
    }
    return {**tensors, **layer, "mtp.fc.weight": torch.randn(32, 64)}


def gemma3_of_the_hub(tensors: dict) -> dict:
    """Named by the release of transformers that it came with."""
    return {
        name.replace("vision_tower.", "vision_tower.vision_model."): value
        for name, value in tensors.items()
    }


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
GEMMA3 = {
    "text_config": HEADS,
    "vision_config": {**VISION, "image_size": 28, "patch_size": 14},
    "mm_tokens_per_image": 4,
}
QWEN2_VL = {
    "text_config": {**SIZES, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    "vision_config": {
        "depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
        "patch_size": 14,
    },
}  # fmt: skip
BIASES = {"attention_bias": True}

# What mergekit's definitions and transformers' conversions make special of.
SPECIAL = {
    "gpt2": Architecture("GPT2", GPT, "LMHeadModel"),
    "gpt2 of the Hub": Architecture("GPT2", GPT, "LMHeadModel", on_hub=gpt2_of_the_hub),
    "gpt-neox": Architecture("GPTNeoX", NEOX),
    "pythia": Architecture("GPTNeoX", NEOX, on_hub=pythia),
    "mixtral": Architecture("Mixtral", {**SIZES, "num_local_experts": 4}),
    "qwen2-moe": Architecture(
        "Qwen2Moe",
        {**SIZES, **EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "qwen3-moe": Architecture("Qwen3Moe", {**HEADS, **EXPERTS, "moe_intermediate_size": 16}),
    "olmoe": Architecture("Olmoe", {**SIZES, **EXPERTS}),
    "llama with biases": Architecture("Llama", {**SIZES, **BIASES, "mlp_bias": True}),
    "qwen3 with biases": Architecture("Qwen3", {**HEADS, **BIASES}),
    "qwen3 with more heads": Architecture("Qwen3", HEADS, on_hub=with_heads_for_more_tokens),
    "cohere": Architecture("Cohere", SIZES),
    "mamba": Architecture(
        "Mamba", {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    ),
    "gemma3 that sees": Architecture("Gemma3", GEMMA3, "ForConditionalGeneration"),
    "gemma3 of the Hub": Architecture(
        "Gemma3", GEMMA3, "ForConditionalGeneration", on_hub=gemma3_of_the_hub
    ),
    "qwen2-vl": Architecture("Qwen2VL", QWEN2_VL, "ForConditionalGeneration"),
}
# What has always worked.
USUAL = {
    "llama": Architecture("Llama", SIZES),
    "mistral": Architecture("Mistral", SIZES),
    "qwen2": Architecture("Qwen2", SIZES),
    "qwen3": Architecture("Qwen3", HEADS),
    "gemma2": Architecture("Gemma2", HEADS),
    "gemma3": Architecture("Gemma3", HEADS, text="Text"),
    "phi3": Architecture("Phi3", SIZES),
    "opt": Architecture(
        "OPT",
        {
            **TOKENS, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "word_embed_proj_dim": 32,
        },
    ),
    "bloom": Architecture("Bloom", {**TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": Architecture(
        "Falcon", {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ),
    "starcoder2": Architecture("Starcoder2", SIZES),
    "granite": Architecture("Granite", SIZES),
    "smollm3": Architecture("SmolLM3", SIZES),
    "olmo2": Architecture("Olmo2", SIZES),
    "lfm2": Architecture("Lfm2", SIZES),
    "gpt-oss": Architecture("GptOss", {**HEADS, "num_local_experts": 4}),
    "deepseek-v3": Architecture(
        "DeepseekV3",
        {
            **SIZES, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4,
            "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
            "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
            "qk_nope_head_dim": 4,
        },
    ),
    "phimoe": Architecture("Phimoe", {**SIZES, "num_local_experts": 4}),
    "granitemoe": Architecture("GraniteMoe", {**SIZES, "num_local_experts": 4}),
    "jamba": Architecture(
        "Jamba",
        {
            **SIZES, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
            "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4,
        },
    ),
}  # fmt: skip
