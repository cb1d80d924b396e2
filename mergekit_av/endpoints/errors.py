"""Errors of a chat-completions endpoint, each in one line that says what to do."""

import contextlib
import json
from collections.abc import Iterator

from mergekit_av.errors import AVError

from .catalog import NO_KEY, Endpoint

LONGEST = 300  # characters of what a server says
AGAIN = "what is done is kept: run the same command again"


@contextlib.contextmanager
def completion_errors(endpoint: Endpoint, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever the client raises into an AVError; the key appears in none.

    Args:
        but: what is let through.
    """
    from openai import OpenAIError

    try:
        yield
    except but:
        raise
    except OpenAIError as error:
        raise AVError(explain(endpoint, error)) from None


def explain(endpoint: Endpoint, error: Exception) -> str:
    """Return what is wrong, and what to do about it."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    where, status = f"{endpoint.model} at {endpoint.base_url}", getattr(error, "status_code", 0)
    if isinstance(error, APITimeoutError):
        text = f"{where} has not answered in time: try a longer --timeout; {AGAIN}"
    elif isinstance(error, APIConnectionError):
        cause = short(error.__cause__) if error.__cause__ else ""
        quoted = f" ({cause})" if cause else ""
        text = f"the connection to {endpoint.base_url} failed{quoted}: check network and address; {AGAIN}"
    elif not isinstance(error, APIStatusError):
        text = f"{where}: {short(error)}"
    elif status == 401:
        text = f"{where} does not accept the key{_quoted(error)}: check it in the environment"
    elif status == 403:
        text = f"{where} refuses this key{_quoted(error)}"
    elif status == 404:
        text = f"{where} is not there{_quoted(error)}: check the model's name and the base URL"
    elif status == 429:
        text = f"{where} allows no more requests now{_quoted(error)}: {AGAIN} later, or with a smaller --concurrency"
    elif status >= 500:
        text = f"{where} has trouble ({status}){_quoted(error)}: {AGAIN} later"
    else:
        text = f"{where} refuses the request ({status}){_quoted(error)}"
    return text if endpoint.key == NO_KEY else text.replace(endpoint.key, "***")


def server_message(content: object) -> str:
    """Return what a server says in an answer that is an error: servers differ in where they say it."""
    if isinstance(content, str):
        with contextlib.suppress(ValueError):
            content = json.loads(content)
    while isinstance(content, dict):
        content = next(
            (content[key] for key in ("error", "message", "detail") if content.get(key)), ""
        )
    return short(content) if content else ""


def short(message: object) -> str:
    """Return a text on one line, cut where it is long."""
    text = " ".join(str(message).split())
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _quoted(error) -> str:
    message = server_message(error.body)
    return f" ({message})" if message else ""
