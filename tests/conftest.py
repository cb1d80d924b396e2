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

from functools import cache
from pathlib import Path

import pytest
import torch
from chat_server import ChatServer
from hub_client import TOKEN, Client, connect
from hub_server import HubServer, User
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mergekit_av.vectors.extraction import extract

VOCABULARY = 600
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "phi": (PhiConfig, PhiForCausalLM),
}


@cache
def _vocabulary() -> str:
    """A byte-level BPE trained on the built-in medical records, as JSON."""
    text = (Path(__file__).parents[1] / "mergekit_av/data/builtin/medical.jsonl").read_text("utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders

    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.train_from_iterator(
        text.splitlines(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer.to_str()


def make_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """A tokenizer, trained once per process."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_vocabulary()),
        pad_token="<pad>",
        eos_token="<|end|>",
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


def make_model(
    folder: Path,
    architecture: str = "llama",
    *,
    tied: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    shard_size: str = "5GB",
    seed: int = 0,
    context: int = 1024,
) -> Path:
    """A random model of two layers and hidden size 32, saved as transformers saves it."""
    config_class, model_class = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4 if architecture == "phi" else 2,
        head_dim=8,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    model_class(config).to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def perturb(base: Path, out: Path, *, scale: float = 1e-3, seed: int = 1, dtype=torch.float32):
    """An "aligned" copy of a single-file model: every weight moved a little."""
    out.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (value.float() + scale * torch.randn(value.shape, generator=generator)).to(dtype)
        for name, value in load_file(base / "model.safetensors").items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for file in base.iterdir():
        if file.suffix in (".json", ".jinja"):
            (out / file.name).write_bytes(file.read_bytes())
    return out


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
