"""What can go wrong with the Hub, in one line that says what to do."""

import contextlib
import json
from collections.abc import Iterator

from mergekit_av.errors import AVError

LONGEST = 300  # characters of what a server says
AGAIN = "run the same command again: what has arrived is kept"


@contextlib.contextmanager
def hub_errors(what: str, token: str | bool | None = None) -> Iterator[None]:
    """Turn whatever the Hub's client raises into an AVError that begins with `what`.

    Args:
        token: what the requests are made with; it appears in no message, whatever a server says.
    """
    try:
        yield
    except AVError:
        raise
    # Of httpx, of Xet, of the cache; and of whatever is done with an answer that is none.
    except Exception as error:
        secret = _secret(token)
        text = f"{what}: {reason(error)}"
        if secret and secret in f"{error} {text}":
            raise AVError(text.replace(secret, "***")) from None
        raise AVError(text) from error


def reason(error: BaseException) -> str:
    """Why, and what to do about it."""
    from huggingface_hub import errors

    cause = error.__cause__
    if isinstance(error, errors.GatedRepoError):
        return "it is gated: ask for access on its page, and log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such repository, or it is private: check the name, and log in with "
            "`hf auth login`"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _status(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it"
    if isinstance(error, errors.IncompleteSnapshotError):
        return "only a part of it is in the cache: get it again with a connection to the Hub"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return "it is not in the cache, and HF_HUB_OFFLINE is set"
        if cause is not None:
            return reason(cause)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "no token: run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, json.JSONDecodeError | LookupError | TypeError | AttributeError):
        return "the answer is not the Hub's: check HF_ENDPOINT, and try again later"
    if isinstance(error, errors.HTTPError):
        said = _short(error) or type(error).__name__
        return f"the connection failed ({said}): check it, then {AGAIN}"
    if "xet-write-token" in str(error) and "404" in str(error):
        return "this server does not offer Xet: set HF_HUB_DISABLE_XET=1"
    if isinstance(error, RuntimeError) and cause is not None:  # which file: of no help
        return reason(cause)
    if isinstance(error, ConnectionError):
        return f"{_short(error)}: check the connection, then {AGAIN}"
    return _short(error)


def _status(error) -> str:
    """Return what an HTTP status means for the user."""
    status, said = error.response.status_code, _short(error.server_message or "")
    said = f" ({said})" if said else ""
    if status == 401:
        return f"the token is not accepted{said}: log in again with `hf auth login`"
    if status == 403:
        return f"the token may not do this{said}: take one with write access to it"
    if status in (409, 412):
        return f"somebody else changed it at the same time{said}: run the same command again"
    if status == 429:
        seconds = error.response.headers.get("Retry-After", "")
        wait = f"wait {seconds} seconds" if seconds.isdigit() else "wait a little"
        return f"too many requests: {wait}, then {AGAIN}"
    if status >= 500:
        return f"the Hub has trouble ({status}): wait a little, then {AGAIN}"
    return f"the Hub refuses ({status}){said or f' ({_short(error)})'}"


def _short(said: object) -> str:
    text = " ".join(str(said).split())
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _secret(token: str | bool | None) -> str | None:
    from huggingface_hub import get_token

    return token if isinstance(token, str) else get_token()
