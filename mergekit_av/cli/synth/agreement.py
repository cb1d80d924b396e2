"""`av-synth agreement`: measure how far annotators agree."""

from pathlib import Path

import click

from mergekit_av.cli.command import command

from .options import folder_argument


@command
@folder_argument
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write everything here.",
)
def agreement(folder, json_file):
    """Cohen's κ of each pair of FOLDER's annotators, and what they chose for which level."""
    from mergekit_av.synthesis.annotate.agreement import measure_agreement

    found = measure_agreement(folder, json_file)
    click.echo(str(found))
