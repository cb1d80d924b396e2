"""`av-synth personas`: sample or create those who ask."""

from dataclasses import replace

import click

from mergekit_av.cli.command import command, given

from .options import generation_options, out_option, show
from .tree import SHAPE, tree_options

OF_SAMPLING = ("--domain", "--out", "--from", "--sample", "--seed", "--restart")


@command
@click.option("--domain", required=True, metavar="NAME|FILE.yml", help="What they ask about.")
@out_option
@click.option(
    "--from",
    "source",
    metavar="FILE|ID",
    help="Sample them from a file (.txt with one a line, or rows with `persona`), a Hub dataset, or personahub.",
)
@click.option("--sample", type=click.IntRange(min=1), help="With --from: so many.  [default: all]")
@click.option(
    "--create",
    is_flag=True,
    help="Create them with a model, from roots that are expanded again and again.",
)
@tree_options
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    default=SHAPE.depth,
    help="How often they are expanded in succession.",
)
@generation_options
def personas(domain, out, source, sample, create, shape, depth, plain, generation):
    """Begin a data set with the people who ask: sampled from elsewhere, created, or both in turn."""
    if bool(source) == create:
        raise click.UsageError("say where they come from: --from, or --create; for both, in turn")
    if sample and create:
        raise click.UsageError("--sample goes with --from")
    if source and (others := [option for option in given() if option not in OF_SAMPLING]):
        raise click.UsageError(f"{others[0]} goes with --create: --from asks no model")

    from mergekit_av.synthesis.generate.run import create_personas, sample_personas

    if source:
        folder, count = sample_personas(
            domain, source, sample, out=out, seed=generation.seed, restart=generation.restart
        )
        click.echo(f"{folder}: {count:,} personas of {source}")
        return
    shape = replace(shape, depth=depth)
    for result in create_personas(domain, generation, out=out, shape=shape, plain=plain):
        show(result)
