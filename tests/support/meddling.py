"""What somebody else does while a command of ours runs."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path


def meddle(pattern: str, action: Callable[[], None]) -> None:
    """Do something once this process opens a file whose path matches for writing, before it does."""
    due = [re.compile(pattern)]

    def watch(event: str, arguments: tuple) -> None:
        writing = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writing and due and due[0].search(str(arguments[0])):
            due.clear()
            action()

    sys.addaudithook(watch)


def put_thesis(folder: Path) -> None:
    """A folder of somebody's."""
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work", "utf-8")
