"""The configuration of a client: which model to ask, and how."""

from dataclasses import dataclass, replace

from mergekit_av.errors import UsageError

from .budget import Budget, Price
from .catalog import Endpoint, find_endpoint


@dataclass(frozen=True)
class ClientConfig:
    """Say which model to ask, and how; `connect` makes a client of it.

    Attributes:
        model: PROVIDER/NAME; or, with `base_url`, any name that its server knows.
        base_url: of an OpenAI-compatible API, instead of a provider's.
        budget: the most that may be spent.
        price: instead of the provider's.
        concurrency: completions under way at a time.
        timeout: seconds without a sign of life after which a request is given up.
        retries: of a request that failed and may succeed.
        prefix: of the options' names in messages, `judge-` for `--judge-model`.
    """

    model: str | None = None
    base_url: str | None = None
    budget: Budget | None = None
    price: Price | None = None
    concurrency: int = 8
    timeout: float = 300.0
    retries: int = 5
    prefix: str = ""

    def or_else(self, model: str | None, base_url: str | None) -> "ClientConfig":
        """Return the same with another model, where none is named."""
        if self.model is not None or model is None:
            return self
        return replace(self, model=model, base_url=self.base_url or base_url)

    def endpoint(self, needs_key: bool = True) -> Endpoint:
        """Return the endpoint that is meant.

        Args:
            needs_key: whether anything will be asked.

        Raises:
            UsageError: no model is named.
            AVError: see `find_endpoint`.
        """
        if self.model is None:
            raise UsageError(
                f"name a model with --{self.prefix}model: PROVIDER/MODEL like openai/gpt-4o, or one "
                f"that the server at --{self.prefix}base-url has"
            )
        return find_endpoint(self.model, self.base_url, self.price, needs_key=needs_key)
