"""`av-synth clean`: records that are fit to train on."""

import click

from mergekit_av.cli.command import command
from mergekit_av.synthesis.clean.duplicates import SIMILARITY

from .options import folder_argument


@command
@folder_argument
@click.option(
    "--domain",
    metavar="NAME|FILE.yml",
    help="Clean this domain's records into FOLDER, instead of what was made there.",
)
@click.option("--data", help="Records instead of that domain's own: a file.")
@click.option("--language", default="en", metavar="CODE", help="Of all texts, ISO 639-1.")
@click.option(
    "--similarity",
    type=click.FloatRange(0, 1, min_open=True),
    default=SIMILARITY,
    help="Drop a query whose three-word sequences are the same as another's from this share on.",
)
@click.option(
    "--refusals",
    multiple=True,
    metavar="LEVEL",
    help="A level at which refusing is right; may be given several times.  [default: those whose "
    "name, sentence or prompt says so]",
)
@click.option(
    "--balance-lengths",
    "balance",
    is_flag=True,
    help="Drop records until the length of a response does not tell its level.",
)
def clean(folder, **options):
    """Write the clean ones of FOLDER's records, and a report of what was dropped and why."""
    from mergekit_av.synthesis.clean.run import CleanConfig
    from mergekit_av.synthesis.clean.run import clean as clean_records

    cleaning = clean_records(CleanConfig(folder, **options))
    for step, count in cleaning.cleaned.steps.items():
        if count:
            click.echo(f"{step}: {count:,} dropped")
    lengths = cleaning.cleaned.balanced or cleaning.cleaned.lengths
    if lengths.tells:
        click.echo("the level can be told from the length: see the report, or --balance-lengths")
    click.echo(str(cleaning))
