"""`av-synth run`: a data set from its domain, in one go."""

import click

from mergekit_av.cli.command import command, given

from .options import generation_options, out_option, show
from .tree import OF_TREE, tree_options


@command
@click.option(
    "--domain", required=True, metavar="NAME|FILE.yml", help="What the records are about."
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    required=True,
    help="Queries to make; cleaning leaves fewer records.",
)
@out_option
@click.option(
    "--from",
    "source",
    metavar="FILE|ID",
    help="Sample personas as av-synth personas does, instead of creating them.",
)
@tree_options
@generation_options
@click.option(
    "--push-to-hub", metavar="ID", help="Push the data set to this repository when it is done."
)
@click.option("--private", is_flag=True, help="With --push-to-hub: make the repository private.")
def run(source, **options):
    """Make a data set: personas, queries, responses, clean records; go on where it was interrupted."""
    from mergekit_av.synthesis.pipeline import SynthesisConfig, synthesize

    config = SynthesisConfig(source=source, **options)
    if source and (shape := [option for option in given() if option in OF_TREE]):
        raise click.UsageError(f"{shape[0]} shapes created personas: with --from none is created")
    commit = synthesize(config, on_result=show).commit
    if commit:
        click.echo(commit)
