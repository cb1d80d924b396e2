"""`av-synth agreement`: how far annotators agree."""

import json
from pathlib import Path

import click

from mergekit_av.cli.command import command
from mergekit_av.io.atomic import check_file, write_whole

from .options import folder_argument


@command
@folder_argument
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write everything here.",
)  # fmt: skip
def agreement(folder, json_file):
    """Cohen's κ of each pair of FOLDER's annotators, and what they chose for which level."""
    from mergekit_av.synthesis.annotate.agreement import agreement as agree
    from mergekit_av.synthesis.annotate.items import ANNOTATIONS, read_annotations
    from mergekit_av.synthesis.folder import DataFolder

    data = DataFolder(folder)
    if json_file:
        check_file(json_file)
    found = agree(read_annotations(data.path / ANNOTATIONS), list(data.domain.levels))
    click.echo(str(found))
    if json_file:
        content = {"domain": data.domain.name, **found.as_json()}
        write_whole(json_file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
