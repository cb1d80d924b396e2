"""What the tests of av-train share: a tiny domain, and the command in processes of its own."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import processes
import torch
import yaml
from processes import Ended, finish
from safetensors.torch import load_file
from torch.distributed import TCPStore

from mergekit_av import AlignmentVector, load_domain, load_records, mean_log_probs
from mergekit_av.models.load import load_model, load_tokenizer

# Learns the tiny domain in the 18 steps of three epochs.
LEARNS = ["--learning_rate", "0.01", "--lr_scheduler_type", "constant", "--num_train_epochs", "3"]


BOTH = ["--lambdas", "1,-1", *LEARNS, "--num_train_epochs", "6", "--beta", "0.25"]


# In the metadata and on the card; unknown of a run that was continued.
SECONDS = re.compile(rb"\"seconds\": (?:[\d.]+|null)|\| seconds \| [\d.]+ \|\n")


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
    """Every file of an alignment vector, but for how long its training took."""
    return {path.name: SECONDS.sub(b"", path.read_bytes()) for path in vector.iterdir()}


def training(vector: Path) -> dict:
    """What a vector says of its training."""
    return json.loads((vector / "alignment_vector.json").read_text("utf-8"))["training"]


def gains(vector: Path, domain: Path, base: Path, value: float) -> torch.Tensor:
    """What λ times a vector adds to the mean log-probabilities: [records, levels], nats per token."""
    records = load_records(load_domain(domain))
    tokenizer, model = load_tokenizer(base), load_model(base)
    before = mean_log_probs(model, tokenizer, records)
    moved = (value * AlignmentVector.open(vector)).apply_to(model)
    return mean_log_probs(moved, tokenizer, records) - before


def av_train(folder: Path, *options: object, **how: object) -> Ended:
    """Run av-train in a process of its own, in `folder`; see `start` for `how`."""
    return finish(start(folder, *options, **how))


def kill(folder: Path, *options: object, at: str, times: int = 1) -> None:
    """Run av-train in `folder` until it is killed; see `start`."""
    assert av_train(folder, *options, kill_at=at, times=times).code == -9


def hold(folder: Path, *options: object, at: str):
    """Run av-train in `folder` until a moment where it waits for SIGCONT; see `start`."""
    process = start(folder, *options, hold_at=at)
    end = time.monotonic() + 120
    while not (folder / f".held-{process.pid}").exists():
        assert process.is_alive() and time.monotonic() < end, processes.finish(process)
        time.sleep(0.005)
    return process


def start(
    folder: Path,
    *options: object,
    kill_at: str | None = None,
    hold_at: str | None = None,
    times: int = 1,
    largest_file: int | None = None,
    environment: dict | None = None,
):
    """Start av-train in `folder`.

    Args:
        kill_at: kill the process (SIGKILL) at a file operation that matches this pattern, before
            it happens: the first, or the one that `times` counts to. Operations read like
            `write runs/tone/history.json`, `read …`, `rename A -> B`, `rmtree runs/tone/data`.
        hold_at: let the process wait there until SIGCONT comes.
        largest_file: bytes; writing more fails, as on a full disk.
    """
    # The paper's, unless a test says another one: it is the cheapest. And float32 products, on every
    # processor the same: the default is bfloat16 where there are instructions for it.
    options = ["--setting", "paper", "--bf16", "false", *map(str, options)]
    arguments = options, kill_at, hold_at, times, environment or {}
    return processes.start(_run, folder, *arguments, largest_file=largest_file)


def in_two_processes(folder: Path, *options: object, **how: object) -> list[Ended]:
    """Run av-train in two processes that know of one another, as torchrun starts them."""
    # Like torchrun's agent, this process has the store in which they meet: at a port that the system
    # gives it, and that nobody else can take before they are there.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    world = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    both = [
        start(folder, *options, environment={**world, "RANK": rank, "LOCAL_RANK": rank}, **how)
        for rank in ("0", "1")
    ]
    return [finish(process) for process in both]


def assert_two_processes_accumulate(folder: Path, *command: object) -> None:
    """Two processes train on `tone` as one does that accumulates two batches."""
    whole = ["--dtype", "float32", "--bf16", "false", "--per_device_train_batch_size", "2"]
    alone = av_train(folder, *command, *whole, "--gradient_accumulation_steps", "2")
    assert alone.code == 0, alone.err
    first, second = in_two_processes(folder, *command, *whole, "--out", "avs/two")
    assert (first.code, second.code) == (0, 0), second.err
    one, two = (load_file(folder / f"avs/{n}/model.safetensors") for n in ("tone", "two"))
    for name, delta in one.items():
        torch.testing.assert_close(two[name], delta, rtol=0, atol=1e-6)
        assert delta.abs().max() > 1e-5


def _run(
    options: list[str], kill_at: str | None, hold_at: str | None, times: int, environment: dict
) -> None:
    from mergekit_av.cli.train import av_train

    os.environ.update(environment)
    if kill_at is not None:
        _at(re.compile(kill_at), times, lambda: os.kill(os.getpid(), signal.SIGKILL))
    if hold_at is not None:
        _at(re.compile(hold_at), times, _sigcont())
    av_train.main(options, prog_name="av-train")


def _at(pattern: re.Pattern, times: int, action: Callable[[], None]) -> None:
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
        if pattern.search(operation.replace(here, "")):
            seen += 1
            if seen == times:
                action()

    sys.addaudithook(watch)


def _sigcont() -> Callable[[], None]:
    """A function that waits for SIGCONT, in whatever thread; made in the main one, which gets it."""
    waiting = True

    def go_on(*_: object) -> None:
        nonlocal waiting
        waiting = False

    def wait() -> None:
        Path(f".held-{os.getpid()}").touch()
        while waiting:
            time.sleep(0.01)

    signal.signal(signal.SIGCONT, go_on)
    return wait
