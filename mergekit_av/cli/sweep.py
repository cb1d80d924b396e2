"""`av-sweep`: what does λ do?"""

import shlex
import sys
from pathlib import Path

import click

from mergekit_av.cli.options.measuring import (
    answer_options,
    model_options,
    record_options,
    vector_options,
)

from .command import command, say

# More evaluations than this are asked about first.
MANY = 500


@command
@vector_options("several are swept one after the other")
@click.option(
    "--lambda",
    "lambdas",
    default="-1.5:1.5:0.1",
    metavar="LOW:HIGH:STEP|A,B,C",
    help="The λ of each vector; 0 is always among them.",
)
@click.option(
    "--domain",
    "domains",
    multiple=True,
    metavar="NAME|FILE.yml",
    help="Domain to score; may be given several times.  [default: the vectors' own]",
)
@record_options
@answer_options(8, "Queries to answer at each λ, for the usable range; 0 leaves it unmeasured.")
@click.option("--prompting/--no-prompting", default=True, help="Compare with asking in words.")
@model_options(dtype="float32", why="as mergekit writes it")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the report; started again with it, a sweep goes on where it was.",
)
@click.option(
    "--write-card",
    is_flag=True,
    help="Store each level's λ in the vectors' folders, for Knobs and the model card.",
)
@click.option("--yes", is_flag=True, help=f"Do not ask before more than {MANY} evaluations.")
def av_sweep(lambdas, avs, out, yes, **options):
    """Preference accuracy, and the state of the language, at every λ of alignment vectors.

    Each vector is moved on its own, the others at 0. The domain of its name is scored on validation
    records, which choose the best λ of each level, and on test records, which report it; other
    domains on test records. Writes report.md, sweep.csv, sweep.json and the figure to OUT; every
    evaluation is kept there when it is done.
    """
    from mergekit_av.evaluation.sweep.grid import parse_grid
    from mergekit_av.evaluation.sweep.report import REPORT
    from mergekit_av.evaluation.sweep.run import SweepConfig, run_sweep

    values = sorted({0.0, *parse_grid(lambdas)})
    words = shlex.join(["av-sweep", *sys.argv[1:]])
    config = SweepConfig(avs=avs, lambdas=values, out=out, command=words, **options)

    def confirm(evaluations: int) -> None:
        if evaluations > MANY and not yes:
            click.confirm(
                f"{len(values)} λ of {len(avs)} vectors make {evaluations} evaluations, less those "
                f"that {out} holds. Go on?",
                abort=True,
                err=True,
            )

    run_sweep(config, confirm=confirm, show=say)
    say(f"Report: {out / REPORT}   Figure: {out / 'sweep.png'}   Numbers: {out / 'sweep.csv'}")
