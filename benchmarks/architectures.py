"""Of which architectures is every tensor known, on disk and in memory?

Each causal LM, and each model that also sees, that transformers has and that can be made tiny from its
configuration's own defaults is saved, loaded, turned into its tensors in memory and back, and compared
bit for bit. Prints a line for each that fails, and how many do not.

    python benchmarks/architectures.py [MODEL_TYPE …]
"""

import inspect
import tempfile
from pathlib import Path

import click
import torch
import transformers

from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.models.layout import Layout
from mergekit_av.models.load import layout_of
from mergekit_av.training.restore import check_trainable

SMALL = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "head_dim": 8, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1, "n_embd": 32,
    "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 64, "d_model": 32,
    "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64,
    "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "q_lora_rank": 8,
    "kv_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 4,
    "first_k_dense_replace": 1, "ffn_dim": 64, "word_embed_proj_dim": 32, "embedding_size": 32,
    "num_layers": 2, "num_heads": 4, "d_ff": 64, "d_kv": 8, "state_size": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 1, "ffn_hidden_size": 64, "image_size": 28,
    "patch_size": 14, "depth": 1, "embed_dim": 16,
}  # fmt: skip
LARGEST = 30_000_000  # parameters; what stays larger with these settings is passed over


@click.command()
@click.argument("types", nargs=-1)
def main(types: tuple[str, ...]) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    whole, failed, passed_over = [], [], []
    for config, kind in architectures():
        if types and config.model_type not in types:
            continue
        try:
            model = build(config, kind)
        except Exception:  # configurations refuse settings in no end of ways
            model = None
        if model is None:
            passed_over.append(config.model_type)
            continue
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            try:
                compare(kind, Path(folder))
                whole.append(config.model_type)
            except Exception as error:
                failed.append(config.model_type)
                click.echo(f"{config.model_type}: {' '.join(str(error).split())[:200]}")
    click.echo(
        f"transformers {transformers.__version__}: {len(whole)} architectures whole, {len(failed)} "
        f"not; {len(passed_over)} could not be made tiny this way"
    )


def architectures():
    """Each configuration class with the class of its model."""
    seen = set()
    for mapping in (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    ):
        for config in mapping:
            kind = mapping[config]
            kind = kind[0] if isinstance(kind, tuple) else kind
            if config.model_type not in seen:
                seen.add(config.model_type)
                yield config, kind


def build(config, kind) -> transformers.PreTrainedModel | None:
    """A tiny model; None of one that stays large."""
    settings = small(config) | {
        name: small(part) for name, part in (getattr(config, "sub_configs", None) or {}).items()
    }
    made = config(**settings)
    with torch.device("meta"):
        if sum(p.numel() for p in kind(made).parameters()) > LARGEST:
            return None
    torch.manual_seed(0)
    return kind(made)


def small(config) -> dict[str, int]:
    """The settings above that a configuration has."""
    known = set(inspect.signature(config.__init__).parameters)
    known |= set(getattr(config, "__dataclass_fields__", ()))
    aliases = getattr(config, "attribute_map", {})
    return {
        name: value
        for name, value in SMALL.items()
        if (name in known or name in aliases) and (name in known or name not in aliases.values())
    }


def compare(kind, folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    layout_of(checkpoint).check_whole(str(folder))
    model = kind.from_pretrained(folder)
    layout, tensors = Layout.of(model, checkpoint.shapes), model.state_dict()
    for group in layout.units:
        read = {name: checkpoint.read(name) for name in group.disk}
        for name, value in layout.to_memory(group, read).items():
            if not torch.equal(value.to(tensors[name].dtype), tensors[name]):
                raise ValueError(f"{name} is another in memory")
        back = layout.to_disk(group, {name: tensors[name] for name in group.memory})
        for name, value in back.items():
            if not torch.equal(value, read[name].to(value.dtype)):
                raise ValueError(f"{name} does not come back")
    check_trainable(model, folder)


if __name__ == "__main__":
    main()
