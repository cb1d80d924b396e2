"""`av-extract`: the difference of two checkpoints as an alignment vector."""

from pathlib import Path

import click

from .check import summary
from .command import command, overwrite_option, say


@command
@click.argument("base")
@click.argument("aligned")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the dimension.  [default: OUT's name]")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16")
@click.option("--levels", help="The dimension's levels, best first, separated by commas.")
@overwrite_option
def av_extract(base, aligned, out, name, dtype, levels, overwrite):
    """Write the difference ALIGNED − BASE as an alignment vector to the folder OUT.

    BASE and ALIGNED are folders or Hub ids of one architecture.
    """
    from mergekit_av.vectors.extraction import extract

    names = [level.strip() for level in levels.split(",")] if levels else None
    vector = extract(base, aligned, out, name=name, dtype=dtype, levels=names, overwrite=overwrite)
    say(summary(vector))
