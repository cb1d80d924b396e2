"""Processes that are killed at every step."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from mergekit_av.io.folders import Kind, entries

# A kind of folder that may be replaced.
OURS = Kind(
    "one of ours",
    known=lambda folder: (folder / "ours").is_file(),
    foreign=lambda folder: [path for path in entries(folder) if path.name not in ("ours", "b")],
)

# Runs an action again and again, each time in a new process that is killed one step later: at its
# first, second, … audit event that matters (files opened, renamed, removed; system calls made).
KILL_AT_EVERY_STEP = """
import os, signal, sys, traceback

def killed_at(step, action, matters):
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        return status == signal.SIGKILL
    left = step
    def hook(event, arguments):
        nonlocal left
        if matters(event, arguments):
            left -= 1
            if left == -1:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    try:
        action()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def kill_at_every_step(action, look, matters=lambda event, arguments: True):
    step = 0
    while killed_at(step, action, matters):
        look()
        step += 1
    assert step > 5, step
    look()
"""


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)
