"""The whole way with a real model behind a real server: `transformers serve` with the default base."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from synthesizing import lines, wait_for
from training_runs import av_train

from mergekit_av.models.default_base import base_or_default

BIN = Path(sys.executable).parent
COUNT = 7  # some of whom must be created
DOMAIN = """\
name: kitchen
description: how much an answer about cooking helps
levels:
  helpful: Gives one precise piece of advice.
  evasive: Says something friendly that helps nobody.
words:
  domain_lingo: cooking
"""
# A model of 135 M parameters writes better the less it is told.
PROMPTS = {
    "roots": "Name {count} people who cook.",
    "expand": "Name {count} people who eat with this person: {persona}",
    "query": "{persona} Write a question about cooking that this person asks, in one sentence.",
    "response": "{query} Answer in one sentence. {definition}",
}
PEOPLE = (
    "A student with one pan.", "A grandfather who bakes.", "A nurse on night shift.",
    "A sailor with a small galley.", "A farmer with too many plums.",
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The base URL of `transformers serve`, and the name of its model."""
    model = base_or_default(None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [BIN / "transformers", "serve", model, "--port", port, "--device", "cpu"]
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [*command, "--dtype", "float32"], stdout=stream, stderr=stream,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    url = f"http://localhost:{port}/v1"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, log.read_text("utf-8")
                time.sleep(0.5)
        yield url, model
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(3000)
def test_from_a_domain_to_a_vector_with_a_kill_in_each_stage(server, base, tmp_path):
    url, model = server
    (tmp_path / "kitchen.yml").write_text(DOMAIN, "utf-8")
    (tmp_path / "people.txt").write_text("\n".join(PEOPLE), "utf-8")
    data = tmp_path / "data"
    sampled = [BIN / "av-synth", "personas", "--domain", "kitchen.yml", "--from", "people.txt"]
    run(tmp_path, [*sampled, "--out", "data"])
    command = [
        BIN / "av-synth", "run", "--domain", "kitchen.yml", "--out", "data", "--count", COUNT,
        "--model", model, "--base-url", url, "--plain", "--roots", 2, "--rounds", 1,
        "--concurrency", 2, "--max-tokens", 80, "--timeout", 600,
    ]  # fmt: skip
    for name, text in PROMPTS.items():
        (data / "prompts" / f"{name}.txt").write_text(text, "utf-8")
    for stage, count in (("created", 1), ("queries", 3), ("responses", 5)):
        process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, stderr=subprocess.DEVNULL)
        wait_for(data / f"{stage}.jsonl", count, seconds=900)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kept = (data / f"{stage}.jsonl").read_bytes()
    run(tmp_path, command)
    assert (data / "responses.jsonl").read_bytes().startswith(kept)
    records = lines(data / "records.jsonl")
    assert records and all(len(row["responses"]) == 2 for row in records)

    trained = av_train(
        tmp_path, "--domain", "data/domain.yml", "--base", base, "--out", "av", "--max_steps", "2",
        "--bf16", "false", "--per_device_train_batch_size", "2",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert (tmp_path / "av" / "model.safetensors").is_file()


def run(folder: Path, command: list[object]) -> None:
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
