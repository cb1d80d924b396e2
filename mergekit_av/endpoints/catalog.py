"""Endpoints: where a model is served, with which key, at which price."""

import ipaddress
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from mergekit_av.errors import AVError

from .budget import Price

PROVIDERS = Path(__file__).parent / "providers.yml"
OWN_KEY = "OPENAI_API_KEY"
NO_KEY = "none"  # the client wants one; a server that has no use for it ignores it


@dataclass(frozen=True)
class Endpoint:
    """Describe a model behind a chat-completions API.

    Attributes:
        model: as the user named it.
        name: as the server knows it.
        base_url: of the API, without `/chat/completions`.
        key: sent as a bearer token; shown nowhere.
        limit: the request's field for the most tokens an answer may have.
        price: None where it is unknown.
        own: whether it is the user's server rather than a known provider's.
    """

    model: str
    name: str
    base_url: str
    key: str = field(repr=False)
    limit: str = "max_tokens"
    price: Price | None = None
    own: bool = False


def find_endpoint(
    model: str, base_url: str | None = None, price: Price | None = None, *, needs_key: bool = True
) -> Endpoint:
    """Return the endpoint that a model's name means.

    Args:
        model: with `base_url` the name that the server there knows; else PROVIDER/NAME with a
            provider of providers.yml.
        base_url: of an OpenAI-compatible API. The key is OPENAI_API_KEY, if that is set.
        price: instead of the one in providers.yml. A server on this machine costs nothing.
        needs_key: whether anything will be asked.

    Raises:
        AVError: there is no such provider, a key is needed that is not in the environment, or the
            address is none.
    """
    if base_url is not None:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise AVError(f"{base_url!r} is no address of an API, like http://localhost:8000/v1")
        if price is None and _is_loopback(url.hostname):
            price = Price(0, 0)
        own_key = os.environ.get(OWN_KEY) or NO_KEY
        return Endpoint(model, model, base_url, own_key, price=price, own=True)
    provider, _, name = model.partition("/")
    known = _providers()
    if provider not in known or not name:
        raise AVError(
            f"no provider is known for the model {model!r}: name it PROVIDER/MODEL with one of "
            f"{', '.join(known)}, or pass the base URL of its API"
        )
    entry = known[provider]
    key = os.environ.get(entry["key"])
    if not key and needs_key:
        raise AVError(f"{model} needs a key: set {entry['key']} in the environment")
    if price is None and name in entry.get("prices", {}):
        price = Price(*entry["prices"][name])
    return Endpoint(
        model, name, entry["base_url"], key or NO_KEY, entry.get("limit", "max_tokens"), price
    )


@cache
def _providers() -> dict[str, dict]:
    return yaml.safe_load(PROVIDERS.read_text("utf-8"))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
