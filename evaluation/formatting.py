"""Results and facts as Markdown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_av.errors import AVError
from mergekit_av.text import markdown

from .accuracy import Result


def check_report(file: Path, heading: str) -> None:
    """Raise AVError, before anything is measured, where a report would replace what is none."""
    try:
        if file.read_text("utf-8", errors="replace").startswith(heading + "\n"):
            return
    except FileNotFoundError:
        return
    except OSError as error:
        raise AVError(f"cannot read {file}: {error.strerror}") from error
    raise AVError(f"{file} is somebody's own, and a report would be there: choose another folder")


def facts(source: Mapping[str, Any]) -> str:
    """On what something was measured."""
    return markdown.facts({name: _in_words(value) for name, value in source.items()})


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return yes(value) if isinstance(value, bool) else str(value)


def shares(result: Result, interval: bool = True) -> list[str]:
    """Preference accuracy of each level."""
    return [share(result, level, interval) for level in result.accuracy]


def share(result: Result, level: str, interval: bool = True, bold: bool = True) -> str:
    """Preference accuracy of a level, with its 95 % interval; bold where it is dominant."""
    found = result.accuracy[level]
    text = f"{found.value:.2f}"
    if bold and level == result.dominant:
        text = f"**{text}**"
    return f"{text} ({found.low:.2f}–{found.high:.2f})" if interval else text


def yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: ""}[value]
