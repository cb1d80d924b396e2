"""Options of the judge."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_av.cli.command import given
from mergekit_av.endpoints.config import ClientConfig

from .completions import completion_options

if TYPE_CHECKING:
    from mergekit_av.evaluation.judge.judge import Judge

SAMPLE, REPEATS, MAX_TOKENS = 20, 1, 512
STORE = "runs/judgements.jsonl"


@dataclass(frozen=True)
class JudgeOptions:
    """What the options say.

    Attributes:
        sample: so many records of each domain at most.
        rubric: a file instead of the package's.
        store: the file that keeps answers and judgements.
    """

    client: ClientConfig
    sample: int
    repeats: int
    max_tokens: int
    rubric: Path | None
    store: Path

    @contextlib.contextmanager
    def judge(self) -> Iterator["Judge"]:
        """The judge.

        Raises:
            click.UsageError: no model is named.
            AVError: its key is missing, the rubric is wrong, or another process has the store.
        """
        from mergekit_av.endpoints.client import connect
        from mergekit_av.evaluation.judge.judge import NEEDED, PLACEHOLDERS, RUBRIC, Judge
        from mergekit_av.evaluation.measure.store import Store
        from mergekit_av.text.template import Template

        client = connect(self.client, temperature=0.0)
        rubric = Template(self.rubric or RUBRIC, PLACEHOLDERS, NEEDED)
        with Store(self.store) as store:
            yield Judge(client, rubric, store, repeats=self.repeats, max_tokens=self.max_tokens)


def judge_options(function: Callable) -> Callable:
    """The options; the command gets them as one argument, `judging`: None without `--judge`."""

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
        default=SAMPLE,
        help="Answers to be judged in each domain, at most.",
    )
    @click.option(
        "--judge-repeats",
        "repeats",
        type=click.IntRange(min=1),
        default=REPEATS,
        help="Judgements of each answer, with the levels in another order and other words.",
    )
    @click.option(
        "--judge-rubric",
        "rubric",
        type=click.Path(dir_okay=False, path_type=Path),
        help="What the judge is told, a text file.  [default: evaluation/rubric.txt of the package]",
    )
    @click.option(
        "--judge-max-tokens",
        "max_tokens",
        type=click.IntRange(min=1),
        default=MAX_TOKENS,
        help="The most of a judgement, with what the judge thinks.",
    )
    @click.option(
        "--judge-store", "store", type=click.Path(dir_okay=False, path_type=Path), default=STORE,
        help="Answers and judgements are kept here, and not made twice.",
    )  # fmt: skip
    @functools.wraps(function)
    def run(*args: Any, client: ClientConfig, wanted: bool, **options: Any) -> Any:
        own = {key: options.pop(key) for key in _KEYS}
        if not wanted and (of_judge := [name for name in given() if name.startswith("--judge-")]):
            raise click.UsageError(f"{of_judge[0]} goes with --judge")
        options["judging"] = JudgeOptions(client, **own) if wanted else None
        return function(*args, **options)

    return run


_KEYS = ("sample", "repeats", "rubric", "max_tokens", "store")
