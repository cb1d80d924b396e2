"""Commands that talk to a server of the tests, each in a process of its own.

huggingface_hub reads its environment when it is imported. So one process per environment imports
everything once, and is forked for each command: a start takes no seven seconds.
"""

import contextlib
import gc
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from processes import Ended


def refused(client, *arguments, code: int = 1, **environment) -> str:
    ended = client.run(*arguments, **environment)
    assert ended.code == code and ended.out == "", ended
    assert TOKEN not in ended.err
    return ended.error


TOKEN = "hf_writeTOKENofME"
PRELOAD = (
    "mergekit_av.cli.push", "mergekit_av.export.hub", "huggingface_hub.hf_api", "hf_xet",
    "huggingface_hub.utils._xet", "huggingface_hub._snapshot_download",
)  # fmt: skip
FOR_MERGES = ("mergekit.scripts.run_yaml", "mergekit_av.merge.method", "mergekit_av.cli.eval")
# The client waits so long for an answer, and between retries of Xet.
IMPATIENT = {
    "HF_HUB_DOWNLOAD_TIMEOUT": "5",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "100ms",
    "HF_XET_CLIENT_RETRY_MAX_DURATION": "10s",
}


@dataclass
class Running:
    """A command that was started."""

    client: "Client"
    pid: int
    log: Path

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def finish(self) -> Ended:
        code = self.client.ask("finish", pid=self.pid)
        out, err = (self.log.with_suffix(suffix).read_text("utf-8") for suffix in (".out", ".err"))
        return Ended(code, out, err)


@dataclass
class Client:
    """One environment, and the folder in which its commands run."""

    process: subprocess.Popen
    folder: Path
    home: Path
    transport: str
    started: int = field(default=0)

    def start(self, command: str, *arguments: object, **environment: str | None) -> Running:
        """Start an installed command, or `python` with a program.

        Args:
            environment: beside that of all; HF_TOKEN is `TOKEN` unless it is given here.
        """
        self.started += 1
        log = self.folder / f".log-{self.started}"
        environment = {"HF_TOKEN": TOKEN, **environment}
        words = [command, *map(str, arguments)]
        pid = self.ask(
            "start", words=words, folder=str(self.folder), log=str(log), environment=environment
        )
        return Running(self, pid, log)

    def run(self, command: str, *arguments: object, **environment: str | None) -> Ended:
        return self.start(command, *arguments, **environment).finish()

    def ask(self, what: str, **details: object) -> int:
        self.process.stdin.write(json.dumps({"what": what, **details}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextlib.contextmanager
def connect(folder: Path, endpoint: str, transport: str = "xet") -> Iterator[Client]:
    """Commands in `folder`, with a cache of their own, for the Hub at `endpoint`.

    Args:
        transport: how large files come and go: `xet`, as for every user, or `lfs`.
    """
    home = folder / "hf-home"
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    here = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        **IMPATIENT,
        **({"HF_HUB_DISABLE_XET": "1"} if transport == "lfs" else {}),
    }
    process = subprocess.Popen(
        [sys.executable, __file__, *PRELOAD, *(FOR_MERGES if transport == "xet" else ())],
        env=outside | here,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Client(process, folder, home, transport)
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


def _serve() -> None:
    """What the process of an environment does, until its stdin ends."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # what was imported is no garbage; looking at it would copy it in every fork
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.pop("what") == "start":
            answer = os.fork()
            if answer == 0:
                os.close(answers)
                os._exit(_run(**asked))
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["pid"], 0)[1])
        os.write(answers, f"{answer}\n".encode())


def _run(words: list[str], folder: str, log: str, environment: dict) -> int:
    import torch

    os.chdir(folder)
    for key, value in environment.items():
        os.environ.pop(key, None) if value is None else os.environ.update({key: value})
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{suffix}", os.O_WRONLY | os.O_CREAT), stream)
    torch.set_num_threads(1)
    command, *arguments = sys.argv[:] = words
    code = 0
    try:
        if command == "python":
            exec(arguments[0], {"__name__": "__main__", "arguments": arguments[1:]})
        else:
            (entry,) = importlib.metadata.entry_points(group="console_scripts", name=command)
            entry.load().main(arguments, prog_name=command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve()
