"""`av-eval`: what does a model prefer?"""

from pathlib import Path

import click

from mergekit_av.cli.options.decoding import decoding_options
from mergekit_av.cli.options.judge import judge_options

from .command import command, say


@command
@click.argument("model", required=False)
@click.option(
    "--domain",
    "domains",
    multiple=True,
    metavar="NAME|FILE.yml",
    help="Domain to score; may be given several times.  [default: all whose records are built in]",
)
@click.option("--data", help="Records instead of the domain's own: a file or a Hub dataset id.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
    default="float32",
    help="What the model computes in; auto is the checkpoint's own.",
)
@click.option("--device", help="A torch device.  [default: the accelerator if there is one]")
@click.option(
    "--answers",
    type=click.IntRange(min=0),
    default=0,
    help="Show the model's answers to so many records of each domain.",
)
@decoding_options(max_new_tokens=256)
@judge_options
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write everything here.",
)
def av_eval(**options):
    """Preference accuracy of MODEL, a folder or a Hub id; without MODEL, of the default base.

    For each record, the level whose response has the highest mean log-probability is preferred;
    a level's accuracy is the share of records that prefer it.

    With --judge a language model also labels what MODEL answers. Beside the shares of the levels
    stands how far the same judge agrees with the known levels of the records' own responses.
    """
    from mergekit_av.evaluation.run import EvalConfig, run_eval

    run_eval(EvalConfig(**options), show=say)
