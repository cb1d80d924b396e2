"""`av-synth queries` and `av-synth responses`: what is asked, and what is answered."""

import click

from mergekit_av.cli.command import command

from .options import folder_argument, generation_options, show


@command
@folder_argument
@click.option("--count", type=click.IntRange(min=1), help="No more than so many in all.")
@generation_options
def queries(folder, count, generation):
    """Make the query of each persona in FOLDER that has none."""
    from mergekit_av.synthesis.generate.run import generate_queries

    for result in generate_queries(folder, generation, count):
        show(result)


@command
@folder_argument
@generation_options
def responses(folder, generation):
    """Make the response to each query in FOLDER at each level that is missing."""
    from mergekit_av.synthesis.generate.run import generate_responses

    for result in generate_responses(folder, generation):
        show(result)
