"""Options of the commands that ask a model for completions."""

import functools
from collections.abc import Callable
from typing import Any

import click

from mergekit_av.endpoints.budget import Budget, Price
from mergekit_av.endpoints.config import ClientConfig


def completion_options(prefix: str = "") -> Callable:
    """Add the options, before whose names `prefix` stands (`judge-`); the command gets them as one
    argument, `client`, a ClientConfig."""
    name = prefix.replace("-", "_")

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            values = {key: options.pop(name + key) for key in KEYS}
            prices = values.pop("price_in"), values.pop("price_out")
            if (prices[0] is None) != (prices[1] is None):
                raise click.UsageError(f"--{prefix}price-in and --{prefix}price-out go together")
            price = None if prices[0] is None else Price(*prices)
            client = ClientConfig(price=price, prefix=prefix, **values)
            return function(*args, client=client, **options)

        for option in reversed(_options(prefix)):
            run = option(run)
        return run

    return decorate


KEYS = (
    *("model", "base_url", "budget", "price_in", "price_out"),
    *("concurrency", "timeout", "retries"),
)


def _options(prefix: str) -> list[Callable]:
    def option(name: str, **how: Any) -> Callable:
        return click.option(f"--{prefix}{name}", **how)

    money = click.FloatRange(min=0)
    return [
        option(
            "model",
            metavar="NAME",
            help="Model: PROVIDER/NAME, like openai/gpt-4o; or, with a base URL, any name that its server knows.",
        ),
        option(
            "base-url",
            metavar="URL",
            help="OpenAI-compatible API instead of a provider's, like http://localhost:8000/v1. Its key, if it wants one, is OPENAI_API_KEY.",
        ),
        option(
            "budget",
            metavar="AMOUNT",
            callback=_budget,
            help="Spend no more: 20USD, or 500000tokens (read and written).",
        ),
        option("price-in", type=money, help="USD per million tokens read, where it is not known."),
        option("price-out", type=money, help="USD per million tokens written."),
        option(
            "concurrency",
            type=click.IntRange(min=1),
            default=ClientConfig.concurrency,
            help="Requests under way at a time.",
        ),
        option(
            "timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=ClientConfig.timeout,
            help="Seconds to wait for a sign of life.",
        ),
        option(
            "retries",
            type=click.IntRange(min=0),
            default=ClientConfig.retries,
            help="Of a request that failed and may succeed, with back-off.",
        ),
    ]


def _budget(_context: click.Context, _option: click.Parameter, value: str | None) -> Budget | None:
    return None if value is None else Budget.parse(value)
