"""Commands in processes of their own, which tests may limit, interrupt and kill."""

import gc
import importlib.metadata
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Processes are forked from one that has imported everything: a start takes no seven seconds.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "mergekit_av.training.train", "mergekit_av.cli.train",
        "mergekit_av.cli.eval", "mergekit_av.cli.sweep",
        "mergekit_av.evaluation.sweep.report", "mergekit_av.models.load",
        "mergekit_av.cli.synth", "mergekit_av.synthesis.pipeline",
        "mergekit_av.endpoints.client", "openai", "scipy.stats", "datasketch", "lingua",
        "transformers.models.llama.modeling_llama",
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """A process that is over: exit code (-9 where it was killed), stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line of stderr, where an expected failure says what is wrong."""
        assert "Traceback" not in self.err, self.err
        return self.err.rstrip().splitlines()[-1]


def start(run: Callable, folder: Path, *arguments: object, largest_file: int | None = None):
    """Call `run(*arguments)` in a process of its own, in `folder`.

    Args:
        run: of a test module, so that the other process finds it.
        largest_file: bytes; writing more fails, as on a full disk.
    """
    process = _server.Process(target=_call, args=(run, folder, arguments, largest_file))
    process.start()
    process.log = folder / f".log-{process.pid}"
    return process


def command(name: str, *options: object) -> None:
    """An installed command, to be run in another process."""
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name=name)
    entry.load().main([str(option) for option in options], prog_name=name)


def python(code: str, *arguments: object) -> None:
    """A program whose imports take no time, to be run in another process."""
    sys.argv = ["-c", *map(str, arguments)]
    exec(code, {"__name__": "__main__"})


def finish(process) -> Ended:
    """Wait for the end, which must come."""
    process.join(timeout=280)
    if process.exitcode is None:
        process.kill()
        process.join()
    return Ended(process.exitcode, *(read(process, stream) for stream in ("out", "err")))


def read(process, stream: str) -> str:
    """What a process has written to `out` or `err` until now."""
    return process.log.with_suffix(f".{stream}").read_text("utf-8")


def _call(run: Callable, folder: Path, arguments: tuple, largest_file: int | None) -> None:
    import torch
    from tqdm import tqdm

    os.chdir(folder)
    # As in a terminal, also where the tests run in the background, which ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f".log-{os.getpid()}.{suffix}", os.O_WRONLY | os.O_CREAT), stream)
    torch.set_num_threads(1)
    gc.freeze()  # what was imported is no garbage: collecting it again takes half of a run
    tqdm.set_lock(threading.RLock())  # the default leaks a semaphore where the process is killed
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.exit(run(*arguments))
