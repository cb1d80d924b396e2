"""`av-export`: alignment vectors in formats of other tools."""

import json
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

import click

from mergekit_av.io.atomic import check_file, write_whole
from mergekit_av.text.tables import aligned

from .command import command, overwrite_option, say

if TYPE_CHECKING:
    from mergekit_av.export.loss import LoraExport


@command
@click.argument("av")
@click.option("--lora", is_flag=True, required=True, help="As a LoRA adapter in PEFT's format.")
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    help="Of its matrices.  [default: of a low-rank vector its own; of others required]",
)
@click.option(
    "--lambda",
    "scale",
    type=float,
    default=1.0,
    metavar="λ",
    help="At which it acts where nothing else is said.",
)
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16")
@click.option("--base", metavar="ID", help="What it calls its base.  [default: as the vector does]")
@click.option("--device", help="A torch device.  [default: the accelerator if there is one]")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the table here.")
@overwrite_option
def av_export(av, lora, rank, scale, dtype, base, device, out, json_file, overwrite):
    """Write the alignment vector AV, a folder or Hub id, for PEFT, vLLM and llama.cpp.

    Each weight matrix of a linear layer becomes the nearest product of two of the given rank; of a
    low-rank vector its own factors are kept as they are. Embeddings, output layer, norms and biases
    are left out. The table says what that costs.
    """
    from mergekit_av.export.peft import export_lora
    from mergekit_av.vectors.vector import AlignmentVector

    if json_file:
        check_file(json_file)
    export = export_lora(
        AlignmentVector.open(av),
        out,
        rank,
        scale=scale,
        dtype=dtype,
        base_id=base,
        device=device,
        overwrite=overwrite,
    )
    say(summary(export))
    if json_file:
        write_whole(json_file, to_json(export))


def summary(export: "LoraExport") -> str:
    """What was written, and what each part of the vector lost."""
    header = ("part", "tensors", "of the squared norm", "of it kept")
    rows = [
        (part.kind, str(part.tensors), f"{part.share:.2%}", f"{part.kept:.1%}")
        for part in export.parts
    ]
    ranks = ", ".join(f"{rank}: {share:.1%}" for rank, share in export.kept_at.items())
    return "\n".join(
        [
            f"{export.folder}: LoRA adapter of rank {export.rank}, λ {export.scale:g}, "
            f"{export.nbytes / 1e6:.1f} MB in {export.dtype}",
            indent(aligned([header, *rows]), "  "),
            f"  kept in all {export.kept:.1%} of the squared norm; by rank {ranks}",
        ]
    )


def to_json(export: "LoraExport") -> str:
    content = asdict(export) | {"folder": str(export.folder), "kept": export.kept}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
