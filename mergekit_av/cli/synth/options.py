"""Options that several commands of av-synth have."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mergekit_av.cli.options.completions import completion_options

out_option = click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write.  [default: data/DOMAIN]"
)
folder_argument = click.argument("folder", type=click.Path(path_type=Path))
seed_option = click.option("--seed", type=int, default=0, help="Of all that is drawn.")


def generation_options(function: Callable) -> Callable:
    """Add the options of a model at work; the command gets them as one argument, `generation`, a
    GenerationConfig."""

    @completion_options()
    @seed_option
    @click.option("--temperature", type=click.FloatRange(min=0), default=1.0, help="Of sampling.")
    @click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        help="The most an answer may have, with what a model thinks.  [default: by what is asked]",
    )
    @click.option(
        "--restart",
        is_flag=True,
        help="Start a stage over whose settings have changed; what it made is kept in FOLDER/old.",
    )
    @click.option(
        "--dry-run", is_flag=True, help="Make the folder, say what it will cost, ask nothing."
    )
    @functools.wraps(function)
    def run(*args, client, seed, temperature, max_tokens, restart, dry_run, **options: Any):
        from mergekit_av.synthesis.stage import GenerationConfig

        # What the stages will cost is news, before they begin.
        logging.getLogger("mergekit_av.synthesis").setLevel(logging.INFO)
        generation = GenerationConfig(client, seed, temperature, max_tokens, restart, dry_run)
        return function(*args, generation=generation, **options)

    return run


def show(result: object) -> None:
    """Print what a stage has come to."""
    click.echo(str(result))
