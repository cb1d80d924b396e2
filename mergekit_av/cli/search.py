"""`av-search`: from wanted levels to the coefficients that bring them out."""

import shlex
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path

import click

from mergekit_av.cli.options.measuring import (
    answer_options,
    model_options,
    pairs_option,
    record_options,
    vector_options,
)
from mergekit_av.errors import AVError

from .command import command, say

SPAN = "-2:2"
# More settings than this are asked about first.
MANY = 500

Span = tuple[Decimal, Decimal]


@command
@vector_options("each gets a coefficient")
@pairs_option(
    "--want",
    metavar="DOMAIN=LEVEL",
    twice="two levels are wanted for {}: give one",
    help="The level that is to be dominant in a domain, which need not be a vector's own.",
)
@click.option("--all", "every", is_flag=True, help="Look for every combination of levels.")
@click.option(
    "--domain",
    "domains",
    multiple=True,
    metavar="NAME|FILE.yml",
    help="With --all the domains to combine; else domains to report beside the wanted ones, or a "
    "file that describes a wanted one.  [default: the vectors' own]",
)
@record_options
@click.option(
    "--range",
    "ranges",
    multiple=True,
    metavar="[NAME=]LOW:HIGH",
    help="Where λ is looked for; for one vector, or for all that have no range of their own.  "
    f"[default: {SPAN}]",
)
@click.option("--step", default="0.1", help="λ is a multiple of this.")
@click.option(
    "--strategy",
    type=click.Choice(["surface", "hierarchical", "grid"]),
    default="surface",
    help="Fit surfaces to some settings; from a coarse grid to finer ones; or every setting.",
)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    help="Settings to measure at most.  [default: twice what the strategy needs to say anything, "
    "three times with --all; the whole grid]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=1.0,
    help="How much of what the fluency guard allows may be used; with `inf` it is only reported, of "
    "what is found.",
)
@answer_options(
    4, "Queries of each domain to answer at each setting, for the fluency guard; 0 for no guard."
)
@click.option(
    "--joint",
    multiple=True,
    metavar="AV",
    help="Vector that `av-train --joint` trained for a combination, to compare with.",
)
@model_options(dtype="auto", why="which the recipe writes in any case")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    help="Processes that measure side by side, by Ray; each loads the model.",
)
@click.option(
    "--runs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the evaluations and the report; that of av-sweep will do as well. Started again "
    "with it, a search goes on where it was.  [default: searches; OUT with --all]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The recipe to write (.yml); with --all the folder for the report and the recipes.",
)
@click.option("--overwrite", is_flag=True, help="Replace the recipe if it is there.")
@click.option("--yes", is_flag=True, help=f"Do not ask before more than {MANY} settings.")
def av_search(ranges, step, out, every, yes, **options):
    """Find the coefficients of alignment vectors that bring out the wanted level in every domain.

    Settings are measured on the live model: which level the validation records prefer, and whether
    the answers to validation queries are still language. The one that meets the wishes with the
    largest margin is reported on test records and written as a recipe for mergekit-yaml. Ends with
    1, and writes the nearest, where no setting meets them.
    """
    from mergekit_av.evaluation.search.run import SearchConfig, run_search
    from mergekit_av.evaluation.search.summary import search_summary

    span, spans = _spans(ranges, step)
    config = SearchConfig(
        span=span,
        ranges=spans,
        step=step,
        out=out,
        every=every,
        command=shlex.join(["av-search", *sys.argv[1:]]),
        **options,
    )

    def confirm(settings: int) -> None:
        if settings > MANY and not yes:
            click.confirm(
                f"Up to {settings} settings will be measured, less those that are kept. Go on?",
                abort=True,
                err=True,
            )

    found = run_search(config, confirm=confirm)
    say(f"{search_summary(found)}\n{config.files()}")
    if not every and not found.met:
        wanted = found.outcomes[0].wanted
        raise AVError(f"no setting tried brings out {wanted}: {out} is the nearest")


def _spans(texts: tuple[str, ...], step: str) -> tuple[Span, dict[str, Span]]:
    """Parse each `[NAME=]LOW:HIGH`; return that of all vectors that have no other, and vector → its own."""
    found: dict[str | None, Span] = {}
    for text in texts:
        name, sign, span = text.rpartition("=")
        key = name if sign else None
        if key in found:
            raise click.UsageError(f"--range is given twice for {key or 'all vectors'}")
        found[key] = _span(span, step)
    of_others = found.pop(None, _span(SPAN, step))
    return of_others, {name: span for name, span in found.items() if name is not None}


def _span(text: str, step: str) -> Span:
    low, _, high = text.partition(":")
    try:
        numbers = [Decimal(number) for number in (low, high, step)]
    except InvalidOperation:
        numbers = []
    if not numbers or not all(number.is_finite() for number in numbers):
        raise click.UsageError(
            f"--range must be like -2:2 and --step like 0.1, not {text!r} and {step!r}"
        )
    return numbers[0], numbers[1]
