"""`av-extract`: the difference of two checkpoints as an alignment vector."""

import logging
from pathlib import Path

import click

from .check import summary
from .command import command, overwrite_option, say


@command
@click.argument("base")
@click.argument("aligned")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the dimension.  [default: OUT's name]")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    help="What the vector is stored in.  [default: bfloat16; of a LoRA adapter what holds its factors "
    "without loss]",
)
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    help="Of a whole model: keep the nearest difference of this rank in each linear layer, as factors, "
    "and nothing of the other tensors. Says what is lost.",
)
@click.option("--levels", help="The dimension's levels, best first, separated by commas.")
@overwrite_option
def av_extract(base, aligned, out, name, levels, **options):
    """Write the difference ALIGNED − BASE as an alignment vector to the folder OUT.

    BASE and ALIGNED are folders or Hub ids of one architecture. ALIGNED may be a PEFT adapter of BASE:
    of a LoRA adapter the vector has the factors, and its size.
    """
    from mergekit_av.vectors.extraction import extract

    names = [level.strip() for level in levels.split(",")] if levels else None
    logging.getLogger("mergekit_av").setLevel(logging.INFO)
    vector = extract(base, aligned, out, name=name, levels=names, **options)
    say(summary(vector))
