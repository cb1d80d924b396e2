"""The one kind of error that a user is expected to meet."""

import click


class AVError(click.ClickException):
    """Something the user can mend: one line that says what is wrong and what to do.

    It is a `ClickException`, so that `mergekit-yaml` and our own commands print it as `Error: …`
    with exit code 1 and no traceback; a ValueError would be turned into a traceback by pydantic.
    """

    def __str__(self) -> str:
        return self.message
