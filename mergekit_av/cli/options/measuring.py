"""Options that av-sweep and av-search share."""

from collections.abc import Callable

import click

from mergekit_av.models.decoding import MAX_NEW_TOKENS

from .decoding import decoding_options

Decorator = Callable[[Callable], Callable]


def _together(*options: Decorator) -> Decorator:
    def decorate(run: Callable) -> Callable:
        for option in reversed(options):
            run = option(run)
        return run

    return decorate


def vector_options(what_for: str) -> Decorator:
    """--base, --av."""
    return _together(
        click.option(
            "--base", help="Base model: a folder or Hub id.  [default: the default base]"
        ),
        click.option(
            "--av", "avs", multiple=True, required=True, metavar="[NAME=]AV",
            help=f"Alignment vector, a folder or Hub id; {what_for}.",
        ),
    )  # fmt: skip


record_options = _together(
    click.option(
        "--data", multiple=True, metavar="DOMAIN=SOURCE",
        help="Records of a domain instead of its own: a file or a Hub dataset id.",
    ),
    click.option(
        "--max-records", type=click.IntRange(min=1), help="At most so many of each split."
    ),
)  # fmt: skip


def answer_options(queries: int, what_for: str) -> Decorator:
    """--generate, and how they are answered."""
    return _together(
        click.option("--generate", type=click.IntRange(min=0), default=queries, help=what_for),
        decoding_options(MAX_NEW_TOKENS),
    )


def model_options(dtype: str, why: str) -> Decorator:
    """--rounding, --seed, --dtype, --device, --transfer."""
    return _together(
        click.option(
            "--rounding", type=click.Choice(["stochastic", "nearest"]), default="stochastic"
        ),
        click.option("--seed", default=0, help="Of the stochastic rounding."),
        click.option(
            "--dtype", type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
            default=dtype, help=f"What the model computes in; auto is the checkpoint's own, {why}.",
        ),
        click.option(
            "--device", help="A torch device.  [default: the accelerator if there is one]"
        ),
        click.option(
            "--transfer", is_flag=True, help="The base is meant to be another than the vectors'."
        ),
    )  # fmt: skip
