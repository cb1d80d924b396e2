"""Options of how answers are written: --max-new-tokens and --gen-kwargs."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import click
import yaml

from mergekit_av.models.decoding import Decoding

# What changes how a token is chosen, and the class of transformers that does it and knows what it may
# be. Beams, lengths and end tokens are not for here.
PROCESSORS = {
    "temperature": "TemperatureLogitsWarper",
    "top_k": "TopKLogitsWarper",
    "top_p": "TopPLogitsWarper",
    "min_p": "MinPLogitsWarper",
    "typical_p": "TypicalLogitsWarper",
    "repetition_penalty": "RepetitionPenaltyLogitsProcessor",
    "no_repeat_ngram_size": "NoRepeatNGramLogitsProcessor",
}
NAMES = ("do_sample", *PROCESSORS, "seed")
WHOLE = ("top_k", "no_repeat_ngram_size", "seed")


def decoding_options(max_new_tokens: int) -> Callable[[Callable], Callable]:
    """Add the options, which the command gets as one argument, `decoding`."""

    def decorate(command: Callable) -> Callable:
        @click.option(
            "--max-new-tokens",
            type=click.IntRange(min=1),
            default=max_new_tokens,
            help="Where answers are cut.",
        )
        @click.option(
            "--gen-kwargs",
            metavar="NAME=VALUE,…",
            callback=_parse,
            help="How answers are written, in generate()'s terms: do_sample=true,temperature=0.7,"
            "top_p=0.9,seed=1.  [default: greedily]",
        )
        @functools.wraps(command)
        def with_decoding(*args: Any, max_new_tokens: int, gen_kwargs: dict | None, **kwargs: Any):
            sampling = dict(gen_kwargs or {})
            seed = sampling.pop("seed", 0)
            return command(*args, decoding=Decoding(max_new_tokens, sampling, seed), **kwargs)

        return with_decoding

    return decorate


def _parse(
    context: click.Context, option: click.Parameter, text: str | None
) -> dict[str, Any] | None:
    """Parse `do_sample=true,top_p=0.9,seed=1`.

    Raises:
        click.BadParameter: a name is unknown or stands twice, or transformers refuses a value, or
            would leave it unused.
    """
    if text is None:
        return None
    arguments: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or name not in NAMES:
            raise click.BadParameter(
                f"{part!r}: must be NAME=VALUE, NAME one of {', '.join(NAMES)}"
            )
        if name in arguments:
            raise click.BadParameter(f"{name} is given twice")
        arguments[name] = _value(name, value)
    if arguments:
        _check(arguments)
    return arguments


def _value(name: str, text: str) -> Any:
    """Parse a value as YAML does, so that `true` is a truth value."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: no date
        value = text
    if isinstance(value, float) and not math.isfinite(value):
        raise click.BadParameter(f"{name}={text}: must be finite")
    # transformers takes no 1 for 1.0.
    return float(value) if type(value) is int and name not in WHOLE else value


def _check(arguments: Mapping[str, Any]) -> None:
    """Raise BadParameter where transformers refuses a value, or would leave it unused."""
    import transformers

    for name, kind in (("do_sample", bool), ("seed", int)):
        if type(arguments.get(name, kind())) is not kind:
            raise click.BadParameter(f"{name}={arguments[name]}: must be of type {kind.__name__}")
    choices = {name: value for name, value in arguments.items() if name != "seed"}
    if "seed" in arguments and not arguments.get("do_sample"):
        raise click.BadParameter(
            "a seed changes nothing where nothing is drawn: name do_sample=true with it"
        )
    try:
        for name, processor in PROCESSORS.items():
            if name in arguments:
                getattr(transformers, processor)(arguments[name])
        transformers.GenerationConfig(**choices).validate(strict=True)
    except (ValueError, TypeError) as error:
        typed = ", ".join(f"{name}={value}" for name, value in choices.items())
        raise click.BadParameter(f"{typed}: {' '.join(str(error).split())}") from error
