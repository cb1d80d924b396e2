"""`av-synth annotate`: people say at which level a response is."""

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
    "--sample", type=click.IntRange(min=1), default=30,
    help="Queries, each with its responses at all levels.",
)  # fmt: skip
@click.option(
    "--shared", type=click.IntRange(min=0),
    help="So many of these are the same for every annotator.  [default: half of them]",
)  # fmt: skip
@seed_option
@click.option(
    "--sheet", type=click.Path(dir_okay=False, path_type=Path),
    help="Write a CSV file to fill in, instead of asking in the terminal.",
)  # fmt: skip
@click.option(
    "--read", "filled", type=click.Path(dir_okay=False, path_type=Path),
    help="Take in such a file.",
)  # fmt: skip
def annotate(folder, annotator, sample, shared, seed, sheet, filled):
    """Judge at which level responses of FOLDER are, without seeing the one they were made for.

    Started again, it goes on where it was.
    """
    shared = (sample + 1) // 2 if shared is None else shared
    if shared > sample:
        raise click.UsageError(f"--shared {shared} is more than --sample {sample}")
    if sheet and filled:
        raise click.UsageError("--sheet writes a file to fill in, --read takes it in: not both")

    from mergekit_av.data.records import load_records
    from mergekit_av.synthesis.annotate.items import (
        ANNOTATIONS,
        Annotations,
        annotations_file,
        assignment,
    )
    from mergekit_av.synthesis.annotate.sheet import read_sheet, write_sheet
    from mergekit_av.synthesis.annotate.terminal import annotate as ask
    from mergekit_av.synthesis.folder import DataFolder

    data = DataFolder(folder)
    place = data.path / ANNOTATIONS
    file = annotations_file(place, annotator)
    records = load_records(data.domain, data.path)
    items = assignment(records, annotator, sample=sample, shared=shared, seed=seed)
    if sheet:
        write_sheet(sheet, items, data.domain)
        click.echo(f"{sheet}: {len(items)} responses; fill in the last column, then --read {sheet}")
        return
    if not filled and not sys.stdin.isatty():
        raise AVError("there is no terminal to ask in: write a file to fill in with --sheet")
    choices = read_sheet(filled, items, data.domain) if filled else []
    with Annotations(place, annotator) as annotations:
        if filled:
            annotations.choose(choices)
        else:
            ask(items, data.domain, annotations)
        done = sum(item.id in annotations.chosen for item in items)
    click.echo(f"{file}: {done} of {len(items)} responses annotated")
