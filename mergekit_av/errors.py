"""The one kind of error that a user is expected to meet."""

import click


class AVError(click.ClickException):
    """Something the user can mend: one line that says what is wrong and what to do.

    It is a `ClickException`, so that `mergekit-yaml` and our own commands print it as `Error: …`
    with exit code 1 and no traceback; a ValueError would be turned into a traceback by pydantic.
    """

    def __str__(self) -> str:
        return self.message


def first_line(error: Exception) -> str:
    """The first line of an error's message; the second as well where the first announces it."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 1 + lines[0].rstrip().endswith(":")])
