"""`av-synth queries` and `av-synth responses`: what is asked, and what is answered."""

import click

from mergekit_av.cli.command import command

from .options import carry_out, folder_argument, maker_options, take


@command
@folder_argument
@click.option("--count", type=click.IntRange(min=1), help="No more than so many in all.")
@maker_options
def queries(folder, count, making):
    """Make the query of each persona in FOLDER that has none."""
    from mergekit_av.synthesis.folder import QUERIES
    from mergekit_av.synthesis.generate.queries import Asking

    data = take(folder)
    maker = making.maker(data)
    stage = Asking(maker, count)

    def make():
        return {QUERIES: f"{folder}: {stage.make():,} queries"}

    carry_out(maker, {QUERIES: stage.estimate()}, make, making.dry_run)


@command
@folder_argument
@maker_options
def responses(folder, making):
    """Make the response to each query in FOLDER at each level that is missing."""
    from mergekit_av.synthesis.folder import RESPONSES
    from mergekit_av.synthesis.generate.responses import Answering

    data = take(folder)
    maker = making.maker(data)
    stage = Answering(maker)

    def make():
        return {RESPONSES: f"{folder}: {stage.make():,} responses"}

    carry_out(maker, {RESPONSES: stage.estimate()}, make, making.dry_run)
