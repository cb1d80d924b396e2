"""Read YAML from strangers, within limits."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mergekit_av.errors import AVError, one_line

# Values in a YAML file, each counted as often as it is referred to.
VALUES = 1_000_000


def every(content: Any) -> Iterator[tuple[Any, Any]]:
    """Each key with its value in what was read from JSON or YAML, at any depth; in a list the key is
    the place. What is referred to several times comes as often."""
    left = [content] if isinstance(content, dict | list) else []
    while left:
        part = left.pop()
        pairs = part.items() if isinstance(part, dict) else enumerate(part)
        for key, value in pairs:
            yield key, value
            if isinstance(value, dict | list):
                left.append(value)


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with the numbers of YAML 1.2: 1.1 makes 90 of 1:30, 8 of 010, and text of 1e-1."""


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag not in (_INT, _FLOAT)]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"[-+]?(0|[1-9][0-9]*)?\.[0-9]+([eE][-+]?[0-9]+)?$|[-+]?(0|[1-9][0-9]*)\.?([eE][-+]?[0-9]+)?$"
        r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        AVError: it is no YAML, or stands for more than a file should.
        OSError: it cannot be read.
    """
    try:
        content = yaml.load(path.read_text("utf-8"), _Loader)
    except OSError:
        raise
    except RecursionError:
        raise AVError(f"{path} is nested too deeply to be read") from None
    except Exception as error:  # PyYAML lets through what the constructors of its types raise
        raise AVError(f"{path} is not readable YAML: {one_line(str(error))}") from error
    refuse_unfolding(content, path)
    return content


def refuse_unfolding(content: Any, where: object) -> None:
    """Raise AVError for YAML whose aliases stand for more than memory holds, or for themselves, and
    for characters that no text has."""
    for count, pair in enumerate(every(content)):
        if count > VALUES:
            raise AVError(f"{where} stands for more than {VALUES:,} values: write no `*` aliases")
        for text in pair:
            if isinstance(text, str) and not is_text(text):
                raise AVError(f"{where} has {text!r}, which is no text")


def is_text(text: str) -> bool:
    """Return whether a file or a path can hold a text: it has no NUL and no half characters."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)
