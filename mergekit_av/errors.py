"""Errors that a user is expected to meet, each in one line."""

import re

import click

# Of a message that quotes what somebody else wrote, the beginning and the end are shown.
LONGEST, END = 1000, 300
# What a terminal obeys instead of showing it, what turns the direction of a text around, and what no
# encoding has.
CONTROLS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)
OUT_OF_MEMORY = re.compile(
    r"(?i)can't allocate memory|cannot allocate memory|out of memory|alloc_cpu"
)


class AVError(click.ClickException):
    """Something the user can mend: one line that says what is wrong and what to do.

    It is a `ClickException`, so that `mergekit-yaml` and our own commands print it as `Error: …`
    with exit code 1 and no traceback; a ValueError would be turned into a traceback by pydantic.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))

    def __str__(self) -> str:
        return self.message


class UsageError(AVError):
    """A wrong combination of arguments; commands end with exit code 2."""

    exit_code = 2


def one_line(message: str) -> str:
    """A message as it may be shown: one line of bounded length, without control characters."""
    line = printable(" ".join(message.splitlines()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - END]} … {line[-END:]}"


def printable(text: str) -> str:
    """A text of lines in which other control characters, however they got there, are written out:
    `\\x1b`."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the second as well where the first announces it."""
    if is_out_of_memory(error):
        return "memory ran out"
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 1 + lines[0].rstrip().endswith(":")])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python or in torch, which has an error of its own on accelerators
    alone."""
    if isinstance(error, RuntimeError):
        return bool(OUT_OF_MEMORY.search(str(error)))
    return isinstance(error, MemoryError)
