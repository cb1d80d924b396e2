"""Read JSON objects from files."""

import json
from pathlib import Path

from mergekit_av.errors import AVError


def read_json(path: Path) -> dict:
    """Read a JSON object from a file.

    Raises:
        AVError: the file is not there or cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"), parse_int=_read_int)
    except FileNotFoundError:
        raise AVError(f"{path.parent} has no {path.name}") from None
    except (ValueError, OSError, RecursionError, OverflowError) as error:
        raise AVError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise AVError(f"{path} must hold a JSON object")
    return content


def _read_int(digits: str) -> int:
    """Return a whole number that a float can hold as well, for all that numbers are used for."""
    number = int(digits)
    float(number)
    return number
