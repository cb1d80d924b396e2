"""Options of the judge."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mergekit_av.cli.command import given
from mergekit_av.endpoints.config import ClientConfig

from .completions import completion_options

OPTIONS = ("sample", "repeats", "rubric", "max_tokens", "store")


def judge_options(function: Callable) -> Callable:
    """Add the options, which the command gets as `judge`: a JudgeConfig; None without `--judge`."""

    @completion_options("judge-")
    @click.option(
        "--judge",
        "wanted",
        is_flag=True,
        help="Have a model say at which level the model's answers are.",
    )
    @click.option(
        "--judge-sample",
        "sample",
        type=click.IntRange(min=1),
        default=20,
        help="Answers to be judged in each domain, at most.",
    )
    @click.option(
        "--judge-repeats",
        "repeats",
        type=click.IntRange(min=1),
        default=1,
        help="Judgements of each answer, with the levels in another order and other words.",
    )
    @click.option(
        "--judge-rubric",
        "rubric",
        type=click.Path(dir_okay=False, path_type=Path),
        help="What the judge is told, a text file.  [default: evaluation/judge/rubric.txt of the package]",
    )
    @click.option(
        "--judge-max-tokens",
        "max_tokens",
        type=click.IntRange(min=1),
        default=512,
        help="The most of a judgement, with what the judge thinks.",
    )
    @click.option(
        "--judge-store",
        "store",
        type=click.Path(dir_okay=False, path_type=Path),
        default="runs/judgements.jsonl",
        help="Answers and judgements are kept here, and not made twice.",
    )
    @functools.wraps(function)
    def run(*args: Any, client: ClientConfig, wanted: bool, **options: Any) -> Any:
        own = {name: options.pop(name) for name in OPTIONS}
        if not wanted and (of_judge := [name for name in given() if name.startswith("--judge-")]):
            raise click.UsageError(f"{of_judge[0]} goes with --judge")
        options["judge"] = _config(client, own) if wanted else None
        return function(*args, **options)

    return run


def _config(client: ClientConfig, own: dict[str, Any]):
    from mergekit_av.evaluation.judge.judge import JudgeConfig

    if own["rubric"] is None:
        del own["rubric"]
    return JudgeConfig(client=client, **own)
