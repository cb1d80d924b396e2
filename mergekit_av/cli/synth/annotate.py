"""`av-synth annotate`: have people say at which level a response is."""

import sys
from pathlib import Path

import click

from mergekit_av.cli.command import command
from mergekit_av.errors import AVError

from .options import folder_argument, seed_option


@command
@folder_argument
@click.option("--annotator", required=True, help="Who annotates.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=30,
    help="Queries, each with its responses at all levels.",
)
@click.option(
    "--shared",
    type=click.IntRange(min=0),
    help="So many of these are the same for every annotator.  [default: half of them]",
)
@seed_option
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a CSV file to fill in, instead of asking in the terminal.",
)
@click.option(
    "--read",
    "filled",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Take in such a file.",
)
def annotate(folder, annotator, sample, shared, seed, sheet, filled):
    """Judge at which level responses of FOLDER are, without seeing the one they were made for.

    Started again, it goes on where it was.
    """
    from mergekit_av.synthesis.annotate.run import Annotation, AnnotationConfig
    from mergekit_av.synthesis.annotate.sheet import write_sheet

    from .terminal import ask

    config = AnnotationConfig(folder, annotator, sample, shared, seed)
    if sheet and filled:
        raise click.UsageError("--sheet writes a file to fill in, --read takes it in: not both")
    annotation = Annotation(config)
    items, domain = annotation.items, annotation.domain
    if sheet:
        write_sheet(sheet, items, domain)
        click.echo(f"{sheet}: {len(items)} responses; fill in the last column, then --read {sheet}")
        return
    if not filled and not sys.stdin.isatty():
        raise AVError("there is no terminal to ask in: write a file to fill in with --sheet")
    done = annotation.read_sheet(filled) if filled else annotation.ask(ask)
    click.echo(f"{annotation.file}: {done} of {len(items)} responses annotated")
