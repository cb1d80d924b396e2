"""What the tests of av-train share: a tiny domain, and the command in processes of its own."""

import gc
import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import yaml

# Processes are forked from one that has imported everything: a start takes no seven seconds.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["mergekit_av.training.dpo", "mergekit_av.training.cli"])


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


def write_domain(
    folder: Path, name: str = "tone", *, train: int = 12, validation: int = 4, of: str = "guest"
) -> Path:
    """A domain of three levels, with short records that each name their split."""
    splits = ["train"] * train + ["validation"] * validation
    records = [
        {
            "id": f"{number}",
            "split": split,
            "query": f"What do you say to {of} number {number}?",
            "responses": {
                "warm": f"How good to see you, my dear {of} {number}! Come in.",
                "neutral": f"Good day. You are number {number}.",
                "cold": "Wait outside.",
            },
        }
        for number, split in enumerate(splits)
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / f"{name}.jsonl").write_text(text, "utf-8")
    domain = {"name": name, "levels": ["warm", "neutral", "cold"], "records": f"{name}.jsonl"}
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(domain, sort_keys=False), "utf-8")
    return path


def contents(vector: Path) -> dict[str, bytes]:
    """Every file of an alignment vector."""
    return {path.name: path.read_bytes() for path in vector.iterdir()}


def training(vector: Path) -> dict:
    """What a vector says of its training."""
    return json.loads((vector / "alignment_vector.json").read_text("utf-8"))["training"]


def av_train(folder: Path, *options: object, **how: object) -> Ended:
    """Run av-train in a process of its own, in `folder`; see `start` for `how`."""
    return finish(start(folder, *options, **how))


def start(
    folder: Path,
    *options: object,
    kill_at: str | None = None,
    times: int = 1,
    largest_file: int | None = None,
    environment: dict | None = None,
):
    """Start av-train in `folder`.

    Args:
        kill_at: kill the process (SIGKILL) at a file operation that matches this pattern, before
            it happens: the first, or the one that `times` counts to. Operations read like
            `write runs/tone/history.json`, `read …`, `rename A -> B`, `rmtree runs/tone/data`.
        largest_file: bytes; writing more fails, as on a full disk.
    """
    process = _server.Process(
        target=_run,
        args=(folder, [str(option) for option in options], kill_at, times, largest_file),
        kwargs=environment or {},
    )
    process.start()
    process.log = folder / f".log-{process.pid}"
    return process


def finish(process) -> Ended:
    process.join(timeout=280)
    if process.exitcode is None:
        process.kill()
        process.join()
    out, err = (process.log.with_suffix(suffix) for suffix in (".out", ".err"))
    return Ended(process.exitcode, out.read_text("utf-8"), err.read_text("utf-8"))


def in_two_processes(folder: Path, *options: object, **how: object) -> list[Ended]:
    """Run av-train in two processes that know of one another, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        start(folder, *options, environment={**world, "RANK": rank, "LOCAL_RANK": rank}, **how)
        for rank in ("0", "1")
    ]
    return [finish(process) for process in processes]


def _run(folder, options, kill_at, times, largest_file, **environment) -> None:
    import torch
    from tqdm import tqdm

    from mergekit_av.training.cli import av_train

    os.chdir(folder)
    os.environ.update(environment)
    for stream, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f".log-{os.getpid()}.{suffix}", os.O_WRONLY | os.O_CREAT), stream)
    torch.set_num_threads(1)
    gc.freeze()  # what was imported is no garbage: collecting it again takes half of a run
    tqdm.set_lock(threading.RLock())  # the default leaks a semaphore where the process is killed
    if kill_at is not None:
        _kill_at(re.compile(kill_at), times)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.exit(av_train.main(options, prog_name="av-train"))


def _kill_at(pattern: re.Pattern, times: int) -> None:
    here, seen = os.getcwd() + "/", 0

    def watch(event: str, args: tuple) -> None:
        nonlocal seen
        if event == "open":
            writing = args[2] & (os.O_WRONLY | os.O_RDWR)
            operation = f"{'write' if writing else 'read'} {args[0]}"
        elif event == "os.rename":
            operation = f"rename {args[0]} -> {args[1]}"
        elif event == "shutil.rmtree":
            operation = f"rmtree {args[0]}"
        else:
            return
        seen += bool(pattern.search(operation.replace(here, "")))
        if seen == times:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
