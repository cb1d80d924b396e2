"""The model card (README.md) of a LoRA adapter that was made of an alignment vector."""

import contextlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from mergekit_av.models.default_base import DEFAULT_BASE, FINGERPRINT
from mergekit_av.text.card import Kept, assemble
from mergekit_av.text.markdown import facts, fenced, table, text
from mergekit_av.vectors.card import PAPER, PROJECT, TAGS, about_base, base_on_hub

if TYPE_CHECKING:
    from mergekit_av.vectors.metadata import Metadata

    from .loss import LoraExport


def lora_card(
    metadata: "Metadata",
    export: "LoraExport",
    license: Mapping[str, Any],
    base_id: str | None = None,
) -> str:
    """Markdown with the front matter that the Hub indexes.

    Args:
        metadata: of the vector.
        license: of the base; see `license_of`.
        base_id: what to call the base; by default what the vector calls it.
    """
    base = base_id or base_on_hub(metadata.base)
    front = ModelCardData(
        base_model=base,
        base_model_relation="adapter" if base else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", *TAGS],
        **license,
    )
    parts = [
        f"# {text(metadata.name)}: an alignment vector as LoRA adapter, rank {export.rank}",
        "The difference between an aligned model and its base "
        f"([Inference time LLM alignment]({PAPER})), cut down to rank {export.rank}. Its scale is λ: "
        "1 is the aligned model, 0 the base, and a negative λ reverses the preference. As it comes "
        f"it acts at λ = {export.scale:g}.",
        "## Use",
        *_use(metadata, export, base_id),
        *about_base(metadata.base),
        "## What rank and format leave out\n\n" + _loss(export),
        "## What it is\n\n" + _what(metadata, export),
    ]
    return assemble(front, parts, Kept(license))


def is_of_vector(card: Path) -> bool:
    """Return whether a file is the card of an adapter that was made of an alignment vector."""
    with contextlib.suppress(Exception):  # PyYAML lets through what its constructors raise
        tags = ModelCard(card.read_text("utf-8"), ignore_metadata_errors=True).data.tags
        return {"lora", *TAGS} <= set(tags or [])
    return False


def _use(metadata: "Metadata", export: "LoraExport", base_id: str | None) -> list[str]:
    name, revision = base_id or metadata.base.id, None if base_id else metadata.base.revision
    if not base_id and metadata.base.fingerprint == FINGERPRINT:
        name = f"./{DEFAULT_BASE}"
    where = json.dumps(name) + (f", revision={json.dumps(revision)}" if revision else "")
    at = f" --revision {shlex.quote(revision)}" if revision else ""
    factor = "λ" if export.scale == 1 else f"λ / {export.scale:g}"
    program = f"""
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({where})
model = PeftModel.from_pretrained(base, "PATH-OR-ID-OF-THIS-ADAPTER")
with rescale_adapter_scale(model, -0.5):  # {factor}
    model.generate(...)
"""
    commands = f"""
vllm serve {shlex.quote(name)}{at} --enable-lora --max-lora-rank {export.rank} \\
    --lora-modules av=PATH-OR-ID-OF-THIS-ADAPTER
python convert_lora_to_gguf.py --base PATH-OF-THE-BASE PATH-OF-THIS-ADAPTER --outfile av.gguf
llama-server -m BASE.gguf --lora-scaled av.gguf:-0.5
"""
    return [
        fenced(program.strip(), "python"),
        f"vLLM applies the adapter at its own λ ({export.scale:g}; another is another export, "
        "`av-export --lambda`); llama.cpp at any, by request too (`lora`):",
        fenced(commands.strip(), "sh"),
    ]


def _loss(export: "LoraExport") -> str:
    rows = [
        (text(part.kind), str(part.tensors), f"{part.share:.2%}", f"{part.kept:.1%}")
        for part in export.parts
    ]
    ranks = ", ".join(f"{rank}: {share:.1%}" for rank, share in export.kept_at.items())
    return "\n\n".join(
        [
            table(("part", "tensors", "of the squared norm", "of it kept"), rows),
            f"In all {export.kept:.1%} of the vector's squared norm is kept. By rank it would be "
            f"{ranks}.",
        ]
    )


def _what(metadata: "Metadata", export: "LoraExport") -> str:
    base = metadata.base
    return facts(
        {
            "vector": f"{metadata.name} ({metadata.fingerprint})",
            "levels, best first": ", ".join(metadata.levels) or "unknown",
            "base": base.id + (f" at {base.revision}" if base.revision else ""),
            "base fingerprint": base.fingerprint,
            "rank": export.rank,
            "λ as it comes": f"{export.scale:g}",
            "stored as": export.dtype,
            "made with": PROJECT,
        }
    )
