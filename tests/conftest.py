"""Real tiny models, tokenizers and records, made once per session."""

import contextlib
import json
import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"  # whatever a test forgets, nothing asks the Hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # on tiny models, threads only wait for one another
# And where a user wants more of them, they do not keep a busy processor from what they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Where torch is told to take the processor for an older one, its oneDNN must be told as well: else
# attention in bfloat16 is sent to instructions that torch then refuses.
os.environ.setdefault(
    "ONEDNN_MAX_CPU_ISA",
    {"default": "SSE41", "avx2": "AVX2"}.get(os.environ.get("ATEN_CPU_CAPABILITY"), "DEFAULT"),
)

from pathlib import Path

import pytest
from chat_server import ChatServer
from hub_client import TOKEN, Client, connect
from hub_server import HubServer, User
from tiny import make_model, make_tokenizer, perturb

from mergekit_av.vectors.extraction import extract


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A tiny bfloat16 Llama with tied embeddings and a tokenizer with a chat template. Read only."""
    folder = make_model(tmp_path_factory.mktemp("base") / "tiny-llama")
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def aligned(base, tmp_path_factory) -> Path:
    """A float32 model near `base`. Read only."""
    return perturb(base, tmp_path_factory.mktemp("aligned") / "aligned")


@pytest.fixture(scope="session")
def vectors(base, tmp_path_factory) -> dict[str, Path]:
    """Three alignment vectors of `base`: medical, financial, legal. Read only."""
    folder = tmp_path_factory.mktemp("avs")
    made = {}
    for seed, name in enumerate(("medical", "financial", "legal"), 11):
        model = perturb(base, folder / f"{name}-aligned", seed=seed)
        made[name] = extract(base, model, folder / name).folder
    return made


@pytest.fixture(scope="session")
def _chat():
    with ChatServer() as server:
        yield server


@pytest.fixture
def chat(_chat):
    """A chat-completions endpoint that does what the test says."""
    _chat.clear()
    return _chat


@pytest.fixture(scope="session")
def _hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def _clients(_hub, tmp_path_factory):
    """Transport → the process that uses it; started when a test asks for it."""
    with contextlib.ExitStack() as stack:
        started = {}

        def get(transport: str) -> Client:
            if transport not in started:
                folder = tmp_path_factory.mktemp(transport)
                started[transport] = stack.enter_context(connect(folder, _hub.url, transport))
            return started[transport]

        yield get


@pytest.fixture
def hub(_hub, base):
    """A Hub with one user, `me`, whose token clients use; and `me/base`."""
    _hub.clear()
    _hub.users[TOKEN] = User("me")
    _hub.add_repo("me/base", {file.name: file.read_bytes() for file in base.iterdir()})
    return _hub


@pytest.fixture
def client(_clients, tmp_path, request):
    """A client of `hub` that works in `tmp_path` with an empty cache, by Xet as every user's."""
    found = _clients(getattr(request, "param", "xet"))
    found.folder = tmp_path
    yield found
    shutil.rmtree(found.home, ignore_errors=True)


@pytest.fixture
def write_jsonl(tmp_path):
    """Write rows to a .jsonl file and return its path."""

    def write(rows, name="records.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    return write
