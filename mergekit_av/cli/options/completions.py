"""Options of the commands that ask a model for completions."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from mergekit_av.endpoints.budget import Budget, Price, Spending, Usage

if TYPE_CHECKING:
    from mergekit_av.endpoints.catalog import Endpoint
    from mergekit_av.endpoints.client import Completions

CONCURRENCY, TIMEOUT, RETRIES = 8, 300.0, 5


@dataclass(frozen=True)
class ClientOptions:
    """What the options say; `prefix` stands before their names in messages."""

    model: str | None
    base_url: str | None
    budget: Budget | None
    price: Price | None
    concurrency: int
    timeout: float
    retries: int
    prefix: str = ""

    def or_else(self, model: str | None, base_url: str | None) -> "ClientOptions":
        """The same with another model, where none is named."""
        if self.model is not None or model is None:
            return self
        return replace(self, model=model, base_url=self.base_url or base_url)

    def endpoint(self, needs_key: bool = True) -> "Endpoint":
        """The endpoint that is meant.

        Args:
            needs_key: whether anything will be asked.

        Raises:
            click.UsageError: no model is named.
            AVError: see `find_endpoint`.
        """
        from mergekit_av.endpoints.catalog import find_endpoint

        if self.model is None:
            raise click.UsageError(
                f"name a model with --{self.prefix}model: PROVIDER/MODEL like openai/gpt-4o, or one "
                f"that the server at --{self.prefix}base-url has"
            )
        return find_endpoint(self.model, self.base_url, self.price, needs_key=needs_key)

    def client(
        self, before: Usage | None = None, *, temperature: float, needs_key: bool = True
    ) -> "Completions":
        """A client of that endpoint.

        Args:
            before: what has been spent of the budget earlier.
            needs_key: whether anything will be asked.
        """
        from mergekit_av.endpoints.client import Completions

        endpoint = self.endpoint(needs_key)
        return Completions(
            endpoint,
            Spending(endpoint.price, self.budget, before),
            concurrency=self.concurrency,
            timeout=self.timeout,
            retries=self.retries,
            temperature=temperature,
        )


def completion_options(prefix: str = "") -> Callable:
    """The options, before whose names `prefix` stands (`judge-`); the command gets them as one
    argument, `client_options`, a ClientOptions."""
    name = prefix.replace("-", "_")

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            values = {key: options.pop(name + key) for key in _KEYS}
            prices = values.pop("price_in"), values.pop("price_out")
            if (prices[0] is None) != (prices[1] is None):
                raise click.UsageError(f"--{prefix}price-in and --{prefix}price-out go together")
            price = None if prices[0] is None else Price(*prices)
            options["client_options"] = ClientOptions(price=price, prefix=prefix, **values)
            return function(*args, **options)

        for option in reversed(_options(prefix)):
            run = option(run)
        return run

    return decorate


_KEYS = (
    "model", "base_url", "budget", "price_in", "price_out", "concurrency", "timeout", "retries",
)  # fmt: skip


def _options(prefix: str) -> list[Callable]:
    def option(name: str, **how: Any) -> Callable:
        return click.option(f"--{prefix}{name}", **how)

    money = click.FloatRange(min=0)
    return [
        option("model", metavar="NAME", help="Model: PROVIDER/NAME, like openai/gpt-4o; or, with a base URL, any name that its server knows."),
        option("base-url", metavar="URL", help="OpenAI-compatible API instead of a provider's, like http://localhost:8000/v1. Its key, if it wants one, is OPENAI_API_KEY."),
        option("budget", metavar="AMOUNT", callback=_budget, help="Spend no more: 20USD, or 500000tokens (read and written)."),
        option("price-in", type=money, help="USD per million tokens read, where it is not known."),
        option("price-out", type=money, help="USD per million tokens written."),
        option("concurrency", type=click.IntRange(min=1), default=CONCURRENCY, help="Requests under way at a time."),
        option("timeout", type=click.FloatRange(min=0, min_open=True), default=TIMEOUT, help="Seconds to wait for a sign of life."),
        option("retries", type=click.IntRange(min=0), default=RETRIES, help="Of a request that failed and may succeed, with back-off."),
    ]  # fmt: skip


def _budget(_context: click.Context, _option: click.Parameter, value: str | None) -> Budget | None:
    return None if value is None else Budget.parse(value)
