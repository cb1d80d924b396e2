"""Commands that wait at a moment that a test names, however fast or busy the machine is."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import processes

from mergekit_av.io.journal import Journal


def start_and_pause(run: Callable, folder: Path, journal: Path, lines: int, *arguments: object):
    """Call `run(*arguments)` in a process of its own; return when it waits.

    It waits once the file of a journal has so many lines, as for a slow disk, until SIGCONT comes.
    Other signals do what they always do.

    Args:
        run: see `processes.start`.
    """
    process = processes.start(_run, folder, run, str(journal), lines, *arguments)
    end = time.monotonic() + 250
    while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
        assert process.is_alive() and time.monotonic() < end, processes.finish(process)
        time.sleep(0.005)
    return process


def _run(run: Callable, journal: str, lines: int, *arguments: object) -> None:
    append, waiting = Journal.append, True

    def go_on(*_: object) -> None:
        nonlocal waiting
        waiting = False

    def append_and_wait(self: Journal, *entries: dict) -> None:
        append(self, *entries)
        while waiting and str(self.file) == journal and len(self.entries) >= lines:
            time.sleep(0.01)

    signal.signal(signal.SIGCONT, go_on)
    Journal.append = append_and_wait
    run(*arguments)
