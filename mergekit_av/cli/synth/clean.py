"""`av-synth clean`: records that are fit to train on."""

import click

from mergekit_av.cli.command import command
from mergekit_av.data.domain import load_domain
from mergekit_av.synthesis.clean.duplicates import SIMILARITY

from .options import folder_argument, hold, take


@command
@folder_argument
@click.option(
    "--domain", metavar="NAME|FILE.yml",
    help="Clean this domain's records into FOLDER, instead of what was made there.",
)  # fmt: skip
@click.option("--data", help="Records instead of that domain's own: a file.")
@click.option("--language", default="en", metavar="CODE", help="Of all texts, ISO 639-1.")
@click.option(
    "--similarity", type=click.FloatRange(0, 1, min_open=True), default=SIMILARITY,
    help="Drop a query whose three-word sequences are the same as another's from this share on.",
)  # fmt: skip
@click.option(
    "--refusals", multiple=True, metavar="LEVEL",
    help="A level at which refusing is right; may be given several times.  [default: those whose "
    "name, sentence or prompt says so]",
)  # fmt: skip
@click.option(
    "--balance-lengths", is_flag=True,
    help="Drop records until the length of a response does not tell its level.",
)  # fmt: skip
def clean(folder, domain, data, language, similarity, refusals, balance_lengths):
    """Write the clean ones of FOLDER's records, and a report of what was dropped and why."""
    if data and not domain:
        raise click.UsageError("--data goes with --domain")

    from mergekit_av.synthesis.clean.filters import Rules
    from mergekit_av.synthesis.clean.run import clean_made, clean_others

    how = {"language": language, "similarity": similarity, "balance": balance_lengths}
    if domain:
        own = load_domain(domain)
        hold(folder)
        cleaning = clean_others(folder, own, data, Rules.of(own, refusals, **how))
    else:
        made = take(folder)
        cleaning = clean_made(made, Rules.of(made.domain, refusals, **how))
    for step, count in cleaning.cleaned.steps.items():
        if count:
            click.echo(f"{step}: {count:,} dropped")
    lengths = cleaning.cleaned.balanced or cleaning.cleaned.lengths
    if lengths.tells:
        click.echo("the level can be told from the length: see the report, or --balance-lengths")
    click.echo(str(cleaning))
