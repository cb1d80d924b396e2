"""Options that av-sweep and av-search share, named as the fields of `InputConfig`."""

import functools
from collections.abc import Callable
from typing import Any

import click

from mergekit_av.models.decoding import MAX_NEW_TOKENS

from .decoding import decoding_options

Decorator = Callable[[Callable], Callable]
DTYPES = click.Choice(["float32", "bfloat16", "float16", "auto"])


def _together(*options: Decorator) -> Decorator:
    """Make one decorator of several options, in their order in the help."""

    def decorate(run: Callable) -> Callable:
        for option in reversed(options):
            run = option(run)
        return run

    return decorate


def pairs_option(flag: str, metavar: str, twice: str, help: str) -> Decorator:
    """Add an option of several `NAME=VALUE`s, which the command gets as a dict.

    Args:
        twice: the usage error where a name is given twice, with a place for the name.
    """
    argument = flag.removeprefix("--")

    def decorate(function: Callable) -> Callable:
        @click.option(flag, multiple=True, metavar=metavar, help=help)
        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            found = {}
            for text in options[argument]:
                name, sign, value = text.partition("=")
                if not (name and sign and value):
                    raise click.UsageError(f"{flag} must be {metavar}, not {text!r}")
                if name in found:
                    raise click.UsageError(twice.format(name))
                found[name] = value
            return function(*args, **{**options, argument: found})

        return run

    return decorate


def vector_options(what_for: str) -> Decorator:
    """--base, --av."""
    return _together(
        click.option("--base", help="Base model: a folder or Hub id.  [default: the default base]"),
        click.option(
            "--av",
            "avs",
            multiple=True,
            required=True,
            metavar="[NAME=]AV",
            help=f"Alignment vector, a folder or Hub id; {what_for}.",
        ),
    )


record_options = _together(
    pairs_option(
        "--data",
        metavar="DOMAIN=SOURCE",
        twice="--data names {!r} twice",
        help="Records of a domain instead of its own: a file or a Hub dataset id.",
    ),
    click.option(
        "--max-records", type=click.IntRange(min=1), help="At most so many of each split."
    ),
)


def answer_options(queries: int, what_for: str) -> Decorator:
    """--generate, and how they are answered."""
    return _together(
        click.option("--generate", type=click.IntRange(min=0), default=queries, help=what_for),
        decoding_options(MAX_NEW_TOKENS),
    )


def model_options(dtype: str, why: str) -> Decorator:
    """--rounding, --seed, --dtype, --device, --transfer."""
    what_for = f"What the model computes in; auto is the checkpoint's own, {why}."
    return _together(
        click.option(
            "--rounding", type=click.Choice(["stochastic", "nearest"]), default="stochastic"
        ),
        click.option("--seed", default=0, help="Of the stochastic rounding."),
        click.option("--dtype", type=DTYPES, default=dtype, help=what_for),
        click.option(
            "--device", help="A torch device.  [default: the accelerator if there is one]"
        ),
        click.option(
            "--transfer", is_flag=True, help="The base is meant to be another than the vectors'."
        ),
    )
