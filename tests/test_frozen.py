"""What users have on disk: folders, stores and journals of an earlier release, read as they were.

Everything here is compared with `tests/frozen`, which an earlier release wrote. A failure means that
somebody's vectors, measurements, paid completions or scripts are no longer what they were. Only where
a format changes on purpose are the files written anew, and the change is said in CHANGELOG.md:

    python tests/test_frozen.py --write

Inputs come from formulas, and what is compared is computed elementwise or exactly, so that neither
the processor nor the release of torch matters.
"""

import csv
import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
import tomllib
import zlib
from dataclasses import asdict
from importlib.metadata import EntryPoint, distribution
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from merging import make_recipe, merge
from safetensors.torch import load_file, save_file
from synthesizing import TINY, lines, novelist
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from training_runs import kill
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig

import mergekit_av
from mergekit_av import AlignmentVector, load_domain, load_records
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.io.journal import Journal, read_journal

FROZEN = Path(__file__).parent / "frozen"
WRITE = bool(os.environ.get("WRITE_FROZEN"))
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
SCRIPTS = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["scripts"]
WEIGHTS = "model.safetensors"
METADATA = "alignment_vector.json"


def same(name: str, found: Any) -> None:
    """Assert that something is what the frozen file `name` says, or write it there."""
    file = FROZEN / name
    if not isinstance(found, bytes | str):
        found = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    content = found.encode() if isinstance(found, str) else found
    if WRITE:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    wanted = file.read_bytes()
    if file.suffix == ".safetensors":
        assert content == wanted, f"{name}: other bytes"
    else:
        assert content.decode() == wanted.decode()


def read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def thaw(name: str, target: Path) -> Path:
    """Copy a frozen file or folder to where a test works; while all is written anew, nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not WRITE:
        (shutil.copytree if (FROZEN / name).is_dir() else shutil.copyfile)(FROZEN / name, target)
    return target


def same_file(name: str, found: Path) -> None:
    """Assert that a file is the frozen one, byte for byte: nothing was added to it."""
    same(name, found.read_bytes())


def run(script: str, *arguments: object, **how: Any) -> Result:
    """Run an installed command, wherever its code is, in this process."""
    target = EntryPoint(script, SCRIPTS[script], "console_scripts").load()
    return CliRunner().invoke(target, [*map(str, arguments)], prog_name=script, **how)


def succeed(script: str, *arguments: object) -> Result:
    result = run(script, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def key_paths(content: Any, path: str = "") -> set[str]:
    """The keys of a JSON document with those above them; `[]` stands for the items of a list."""
    if isinstance(content, dict):
        below = [(f"{path}.{key}" if path else key, value) for key, value in content.items()]
    elif isinstance(content, list):
        below = [(f"{path}[]", value) for value in content]
    else:
        return set()
    return {name for name, _ in below}.union(*(key_paths(value, name) for name, value in below))


def same_keys(name: str, file: Path) -> None:
    """Assert that a JSON file has the keys of the frozen list, and no others."""
    content = read(file)
    same(f"keys/{name}.txt", "\n".join(sorted(key_paths(content))) + "\n")


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """Undo what av-train changes in its process."""
    logger = logging.getLogger("mergekit_av")
    level = logger.level
    for name in ("TQDM_DELAY", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))
    yield
    logger.setLevel(level)


# Models from formulas

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 264,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Answers begin behind thoughts, which given responses do not have.
THINKING = TEMPLATE.replace("<|assistant|>{%", "<|assistant|>(I think.)\n{%")


def numbers(name: str, shape: tuple[int, ...], most: int) -> torch.Tensor:
    """Whole numbers from -most to most, in float32, as the name and the place of each decide."""
    count = torch.Size(shape).numel()
    mixed = (torch.arange(count) * 2654435761 + zlib.crc32(name.encode())) % 2**32
    return ((mixed >> 16) % (2 * most + 1) - most).to(torch.float32).reshape(shape)


def shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama with the sizes of CONFIG."""
    found = {"model.embed_tokens.weight": (vocabulary, 8), "model.norm.weight": (8,)}
    for layer in range(2):
        own = {
            "input_layernorm": (8,),
            "post_attention_layernorm": (8,),
            "self_attn.q_proj": (8, 8),
            "self_attn.k_proj": (4, 8),
            "self_attn.v_proj": (4, 8),
            "self_attn.o_proj": (8, 8),
            "mlp.gate_proj": (16, 8),
            "mlp.up_proj": (16, 8),
            "mlp.down_proj": (8, 16),
        }
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return found


def write_model(
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    moved: str | None = None,
    step: float = 0.0,
    vocabulary: int = 264,
) -> Path:
    """Write a model whose every weight is a small multiple of 1/16, plus one of `step`.

    Few bits are set, so that norms are exact in whatever order their squares are added.

    Args:
        moved: which multiples of `step`; none for the base.
    """
    tensors = {}
    for name, shape in shapes(vocabulary).items():
        value = numbers(name, shape, 7) / 16 + ("norm" in name)
        if moved:
            value += numbers(f"{moved} {name}", shape, 3) * step
        tensors[name] = value.to(dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    content = {**CONFIG, "vocab_size": vocabulary, "dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return folder


def write_tokenizer(folder: Path, template: str = TEMPLATE) -> None:
    """Write a tokenizer whose tokens are bytes."""
    words = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    words += sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({word: id for id, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(words[:5])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)


EXTRACTIONS = {
    "tone": (torch.float32, 1 / 512, ("--levels", "warm,neutral,cold")),
    "pace": (torch.bfloat16, 1 / 128, ("--dtype", "float32", "--levels", "quick,slow")),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with the base, in three dtypes, two aligned models, and their frozen vectors.

    Nothing in it is changed: tests work in a folder of their own beside it.
    """
    folder = tmp_path_factory.mktemp("frozen")
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        name = {torch.bfloat16: "base"}.get(dtype, f"base-{dtype}".replace("torch.", ""))
        write_tokenizer(write_model(folder / name, dtype))
    write_tokenizer(write_model(folder / "base-thinking"), THINKING)
    for name, (dtype, step, options) in EXTRACTIONS.items():
        write_model(folder / f"{name}-aligned", dtype, name, step)
        if WRITE:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                succeed("av-extract", "base", f"{name}-aligned", name, *options)
        else:
            shutil.copytree(FROZEN / "vectors" / name, folder / name)
    for file in ("tone.yml", "tone.jsonl", "pace.yml", "pace.jsonl"):
        shutil.copyfile(FROZEN / file, folder / file)
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch) -> Path:
    """A folder of the test's own, the current one, that holds links to all of the world."""
    for path in world.iterdir():
        (tmp_path / path.name).symlink_to(path, target_is_directory=path.is_dir())
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


# Fingerprints


def test_fingerprints(tmp_path):
    """Of every dtype; of tensors that are larger than a block, with blocks of either kind."""
    rows = (1030, 1024)
    half = numbers("large", rows, 100)
    half[1025:] /= 3  # the last block alone needs all bits of a float32
    contents = {
        "none": {},
        "large": {"large": half},
        "another name": {"other": half},
        "another shape": {"large": half.reshape(1024, 1030)},
        "vector": {"large": half.flatten()},
        "scalar": {"one": torch.tensor(3.5), "empty": torch.empty(0, 4)},
        "several": {name: numbers(name, shape, 50) / 7 for name, shape in shapes(9).items()},
    }
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn):
        small = numbers("small", (64, 33), 8) / 4
        contents[f"small {dtype}"] = {"small": small.to(dtype)}
        contents[f"thirds {dtype}"] = {"small": (small / 3).to(dtype)}
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool):
        contents[f"whole {dtype}"] = {"small": numbers("small", (64, 33), 8).abs().to(dtype)}
    found = {}
    for number, (name, tensors) in enumerate(contents.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(tensors, folder / WEIGHTS)
        found[name] = fingerprint(Checkpoint(folder))
    # The order of shards is not that of the names.
    shards = {"b": "model-1.safetensors", "a": "model-2.safetensors"}
    (tmp_path / "shards").mkdir()
    for name, file in shards.items():
        save_file({name: numbers(name, (3, 5), 9)}, tmp_path / "shards" / file)
    index = json.dumps({"metadata": {}, "weight_map": shards})
    (tmp_path / "shards/model.safetensors.index.json").write_text(index, "utf-8")
    found["shards"] = fingerprint(Checkpoint(tmp_path / "shards"))
    same("fingerprints.json", found)


# Merges

FILTERS = [{"filter": "mlp", "value": 1.5}, {"filter": "self_attn", "value": -0.5}, {"value": 0}]
BOTH = {"tone": -0.7, "pace": 0.37}
BF16 = {"dtype": "bfloat16"}
MERGES = {
    "bfloat16": ("base", BOTH, BF16),
    "bfloat16, seed 7": ("base", BOTH, {**BF16, "parameters": {"seed": 7}}),
    "bfloat16, nearest": ("base", BOTH, {**BF16, "parameters": {"rounding": "nearest"}}),
    "bfloat16, pace alone": ("base", {"tone": 0, "pace": -1}, BF16),
    "bfloat16, filters": ("base", {"tone": FILTERS, "pace": -2.5}, BF16),
    "bfloat16, a gradient": ("base", {"tone": [-1, 2], "pace": 0.1}, BF16),
    "bfloat16 from float32": ("base-float32", {"tone": 0.3}, BF16),
    "float16": ("base-float16", BOTH, {"dtype": "float16"}),
    # Without a dtype that of the widest, the vector `pace`.
    "float32": ("base", BOTH, {}),
    "float32, the other order": ("base", dict(reversed(BOTH.items())), {}),
    "float32, filters": ("base-float32", {"tone": FILTERS, "pace": -2.5}, {}),
}


def sha256_of(tensors: dict[str, torch.Tensor]) -> str:
    """Hash names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def test_merges(here):
    """The paths are whole ones: mergekit remembers what it has read by the path in the recipe."""
    found = {}
    for number, (name, (base, lambdas, top)) in enumerate(MERGES.items()):
        recipe = make_recipe(here / base, {here / av: x for av, x in lambdas.items()}, **top)
        found[name] = sha256_of(merge(recipe, here / f"merged-{number}"))
    same("merges.json", found)
    assert len({*found.values()}) == len(found)  # each tells something of its own


def test_a_merge_that_is_longer_than_a_chunk_and_the_end_of_the_noise(tmp_path):
    """With seed 5 the noise for the embeddings passes the end of its table in the first chunk."""
    base, vector = write_model(tmp_path / "base", vocabulary=131200), tmp_path / "tone"
    aligned = write_model(tmp_path / "aligned", torch.float32, "tone", 1 / 512, vocabulary=131200)
    succeed("av-extract", base, aligned, vector)
    found = {}
    for seed in (0, 5):
        recipe = make_recipe(base, {vector: -0.7}, parameters={"seed": seed})
        found[f"seed {seed}"] = sha256_of(merge(recipe, tmp_path / f"merged-{seed}"))
    found["fingerprint"] = AlignmentVector.open(vector).metadata.fingerprint
    same("long_merges.json", found)


# Vectors


@pytest.mark.parametrize("name", EXTRACTIONS)
def test_extracting_again_writes_the_same(here, name):
    _, _, options = EXTRACTIONS[name]
    succeed("av-extract", "base", f"{name}-aligned", f"again/{name}", *options)
    assert sorted(path.name for path in Path(f"again/{name}").iterdir()) == [
        "README.md", METADATA, "config.json", WEIGHTS,
    ]  # fmt: skip
    if WRITE:
        same_file(f"vectors/{name}/README.md", Path(f"again/{name}/README.md"))
        same_file(f"vectors/{name}/{METADATA}", Path(f"again/{name}/{METADATA}"))
    for file in (WEIGHTS, "config.json"):
        same_file(f"vectors/{name}/{file}", Path(f"again/{name}/{file}"))
    before, now = (read(folder / name / METADATA) for folder in (FROZEN / "vectors", Path("again")))
    assert before.pop("created_with").keys() == now.pop("created_with").keys()
    assert json.dumps(now) == json.dumps(before)


@pytest.mark.parametrize("name", EXTRACTIONS)
def test_a_vector_is_read_with_every_field(here, name):
    vector = AlignmentVector.open(name)
    assert_read(vector, read(here / name / METADATA))
    assert "weights unchanged" in succeed("av-check", name, "--base", "base").stdout
    for tensor, value in load_file(here / name / WEIGHTS).items():
        assert torch.equal(vector.tensor(tensor), value.float())


def assert_read(vector: AlignmentVector, content: dict) -> None:
    for key, value in content.items():
        found = getattr(vector.metadata, key)
        assert (asdict(found) if key == "base" else found) == value, key
    assert content["format_version"] == 1
    assert len(content) == 10


# Evaluations, and what is reported of them


def own_copy(link: Path) -> Path:
    """Put a folder that may be changed in the place of a link to it."""
    original = link.resolve()
    link.unlink()
    return Path(shutil.copytree(original, link))


SWEEP = [
    "--base", "base", "--av", "tone", "--av", "pace", "--domain", "tone.yml", "--domain", "pace.yml",
    "--lambda", "-30,30", "--max-records", 3, "--generate", 2, "--max-new-tokens", 4,
    "--device", "cpu",
]  # fmt: skip
SEARCH = [
    "--base", "base", "--av", "tone", "--av", "pace", "--domain", "tone.yml", "--domain", "pace.yml",
    "--strategy", "grid", "--range", "0:30", "--step", 30, "--max-records", 3, "--generate", 1,
    "--max-new-tokens", 4, "--gen-kwargs", "do_sample=true,top_p=0.9,seed=3", "--device", "cpu",
    "--tolerance", 1000, "--seed", 2, "--rounding", "nearest",
]  # fmt: skip


REPORTS = ("json", "md", "png", "svg")


def test_records_without_ids_and_splits_get_the_same_ones(tmp_path):
    """Else a model would be tested on what it was trained on."""
    rows = [
        {"prompt": f"How soon is train {n} here?", "chosen": "a", "rejected": "b"}
        for n in range(99)
    ]
    rows += [{**row, "id": f"own {n}"} for n, row in enumerate(rows[:50:2])]
    rows += [{**row, "prompt": [{"role": "user", "content": f"Ü {n}"}],
              "chosen": [{"role": "assistant", "content": "a"}],
              "rejected": [{"role": "assistant", "content": "b"}]}
             for n, row in enumerate(rows[:9])]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    records = load_records(load_domain(FROZEN / "pace.yml"), file)
    same("records.txt", "".join(f"{record.id} {record.split}\n" for record in records))


def test_a_store_of_a_sweep_answers_all_that_a_sweep_asks(here):
    """The keys of evaluations: a key that is another would be measured, and added to the store."""
    store = thaw("sweep.jsonl", here / "out/evaluations.jsonl")
    before = read(here / "tone" / METADATA)
    own_copy(here / "tone")
    succeed("av-sweep", *SWEEP, "--out", "out", "--write-card")
    same_file("sweep.jsonl", store)
    assert {file.name for file in Path("out").iterdir()} == {
        "evaluations.jsonl", "report.md", "sweep.csv", "sweep.json", "sweep.png", "sweep.svg",
    }  # fmt: skip
    same_keys("av-sweep", here / "out/sweep.json")
    calibrated = read(here / "tone" / METADATA)
    calibration = calibrated.pop("calibration")
    if WRITE:
        same("calibration.json", calibration)
    same("keys/calibration.txt", "\n".join(sorted(key_paths(calibration))) + "\n")
    assert calibrated == {key: value for key, value in before.items() if key != "calibration"}
    same("keys/sweep.csv.txt", (here / "out/sweep.csv").read_text("utf-8").splitlines()[0] + "\n")


def test_a_store_of_a_search_answers_all_that_a_search_asks(here):
    store = thaw("search.jsonl", here / "out/evaluations.jsonl")
    wanted = ("--want", "tone=warm", "--want", "pace=quick")
    assert run("av-search", *SEARCH, *wanted, "--runs", "out", "--out", "mine.yml").exit_code in (
        0,
        1,
    )
    assert run("av-search", *SEARCH, "--all", "--runs", "out", "--out", "all").exit_code == 0
    same_file("search.jsonl", store)
    reports = {f"{name}.{end}" for name in ("mine", "combinations") for end in REPORTS}
    assert {file.name for file in Path("out").iterdir()} == {"evaluations.jsonl", *reports}
    same("recipe.json", yaml.safe_load((here / "mine.yml").read_text("utf-8")))
    same_keys("av-search", here / "out/mine.json")
    same_keys("av-search-all", here / "out/combinations.json")


@pytest.mark.parametrize("base", ["base", "base-thinking"])
def test_a_store_of_judgements_answers_all_that_a_judge_is_asked(here, chat, base):
    store = thaw(f"judgements-{base}.jsonl", here / "runs/judgements.jsonl")
    chat.write = lambda body: "ABC"[zlib.crc32(body["messages"][-1]["content"].encode()) % 3]
    succeed(
        "av-eval", base, "--domain", "tone.yml", "--device", "cpu", "--max-new-tokens", 4,
        "--answers", 1, "--judge", "--judge-model", "tiny", "--judge-base-url", chat.url,
        "--judge-sample", 2, "--judge-repeats", 2, "--judge-concurrency", 1, "--json", "out.json",
    )  # fmt: skip
    assert len(chat.requests) == (16 if WRITE else 0)
    same_file(f"judgements-{base}.jsonl", store)
    same_keys("av-eval", here / "out.json")


def test_the_keys_of_an_export(here):
    """The table, and what PEFT reads; the matrices are of a decomposition, and not compared."""
    options = ("--lora", "--rank", 2, "--device", "cpu", "--json", "out.json")
    succeed("av-export", "tone", *options, "--out", "adapter")
    same_keys("av-export", here / "out.json")
    same_keys("adapter_config", here / "adapter/adapter_config.json")
    names = sorted(load_file(here / "adapter/adapter_model.safetensors"))
    same("keys/adapter_model.txt", "\n".join(names) + "\n")


# Journals


def test_a_journal_is_written_and_read_as_it_was(tmp_path):
    file = tmp_path / "journal.jsonl"
    with Journal(file) as journal:
        journal.append(
            {"text": "λ\n\u2028 “ü”", "half": "\ud83d"}, {"b": 1, "a": [0.1, 1e-9, None]}
        )
        journal.append({"whole": 1.0, "truth": True, "nested": {"z": {}, "a": []}})
    same_file("journal.jsonl", file)
    file.write_bytes(file.read_bytes() + b'{"cut": "o')
    entries = [json.loads(line) for line in (FROZEN / "journal.jsonl").read_text().split("\n")[:-1]]
    assert read_journal(file) == entries
    with Journal(file) as journal:
        assert journal.entries == entries
    same_file("journal.jsonl", file)


SYNTH = ("--count", 5, "--concurrency", 1, "--seed", 4)
MADE = ("created", "queries", "responses")


def synthesize(chat, out: Path) -> Result:
    return succeed(
        "av-synth", "run", "--domain", "tone.yml", "--out", out, *SYNTH, "--base-url", chat.url, *TINY
    )  # fmt: skip


def without_dates(entries: list[dict]) -> list[dict]:
    for entry in entries:
        if entry.get("made"):
            assert entry["made"].pop("date")
    return entries


def test_a_folder_of_av_synth_is_gone_on_with_and_nothing_is_asked_again(here, chat):
    chat.write = novelist
    data = thaw("synthesis", here / "data")
    synthesize(chat, data)
    if WRITE:
        settings = (data / "settings.json").read_text("utf-8")
        (data / "settings.json").write_text(settings.replace(chat.url, "http://127.0.0.1:8000/v1"))
        shutil.rmtree(FROZEN / "synthesis", ignore_errors=True)
        shutil.copytree(
            data, FROZEN / "synthesis", ignore=shutil.ignore_patterns(".*", "annotations")
        )
    else:
        assert not chat.requests
    for name in (*MADE, "records", "dropped"):
        same_file(f"synthesis/{name}.jsonl", data / f"{name}.jsonl")
    for name in ("settings", "spending"):
        now, before = (read(folder / f"{name}.json")
                       for folder in (data, FROZEN / "synthesis"))  # fmt: skip
        for stage in (*now.values(), *before.values()):
            stage.pop("base_url", None)
        assert now == before
    same_keys("cleaning", data / "cleaning.json")


def test_a_folder_of_av_synth_made_again_is_the_same(here, chat):
    """Ids, draws, prompts and lines; the model writes the same to the same prompt."""
    chat.write = novelist
    synthesize(chat, here / "data")
    for name in MADE:
        now, before = (
            without_dates(lines(folder / f"{name}.jsonl"))
            for folder in (here / "data", FROZEN / "synthesis")
        )
        assert json.dumps(now) == json.dumps(before)
    assert (here / "data/domain.yml").read_bytes() == (FROZEN / "synthesis/domain.yml").read_bytes()


def test_annotations_are_read_and_the_same_items_are_drawn(here):
    data = Path(shutil.copytree(FROZEN / "synthesis", "data"))
    levels = ("warm", "neutral", "cold")
    for annotator, other in (("ada", 0), ("bob", 1)):
        options = ("--annotator", annotator, "--sample", 3, "--shared", 2, "--seed", 6)
        succeed("av-synth", "annotate", data, *options, "--sheet", f"{annotator}.csv")
        same_file(f"{annotator}.csv", Path(f"{annotator}.csv"))
        head, *rows = csv.reader(io.StringIO(Path(f"{annotator}.csv").read_text("utf-8-sig")))
        for number, row in enumerate(rows):
            row[3] = levels[(number + other * (number % 2)) % 3]
        with Path(f"{annotator}.csv").open("w", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *rows])
        shutil.rmtree(data / "annotations", ignore_errors=True)
        succeed("av-synth", "annotate", data, *options, "--read", f"{annotator}.csv")
        entries = lines(data / f"annotations/{annotator}.jsonl")
        if WRITE:
            same_file(
                f"synthesis/annotations/{annotator}.jsonl", data / f"annotations/{annotator}.jsonl"
            )
        before = lines(FROZEN / f"synthesis/annotations/{annotator}.jsonl")
        assert all(entry.pop("date") for entry in (*entries, *before))
        assert json.dumps(entries) == json.dumps(before)
    shutil.rmtree(data / "annotations")
    shutil.copytree(FROZEN / "synthesis/annotations", data / "annotations")
    succeed("av-synth", "agreement", data, "--json", "agreement.json")
    same_keys("agreement", here / "agreement.json")
    assert "ada" in Path("agreement.json").read_text("utf-8")


# Runs of av-train

RUNS = {
    "paper": ["--setting", "paper", "--learning_rate", "2e-4"],
    "spectrum": [
        "--setting", "spectrum", "--lambdas", "1,-0.5,-1", "--hold", "pace.yml", "--pairs", "all",
    ],
}  # fmt: skip
# Where a run is, and how it is shown, is no part of its settings.
INCIDENTAL = {"output_dir", "run_name", "logging_dir", "disable_tqdm", "local_rank", "hub_token"}


def trl_defaults(folder: Path) -> dict[str, Any]:
    """What settings.json has of a field that neither we nor the user set."""
    content = DPOConfig(output_dir=str(folder), use_cpu=True, bf16=False).to_dict()
    return {
        k: v for k, v in json.loads(json.dumps(content, default=str)).items() if k not in INCIDENTAL
    }


def av_train(name: str, *more: str) -> Result:
    options = ["--domain", "tone.yml", "--base", "base", "--bf16", "false", "--use_cpu", "true"]
    return run("av-train", *options, *RUNS[name], *more)


def write_frozen_run(here: Path, name: str) -> None:
    """Train, kill it when only the vector is left to write, and keep what of the run is small."""
    defaults, tone, frozen = trl_defaults(here), here / "runs/tone", f"training/{name}"
    options = ["--domain", "tone.yml", "--base", "base", "--use_cpu", "true", *RUNS[name]]
    kill(here, *options, at=r"write avs/\.tone.*/model.safetensors")
    settings = read(tone / "settings.json")
    own = {k: v for k, v in settings.items() if k not in defaults or v != defaults[k]}
    same(f"{frozen}/settings.json", own)
    same(f"{frozen}/history.json", read(tone / "history.json"))
    assert read(tone / "aligned.json")
    last = max(tone.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = read(last / "trainer_state.json")
    same(f"{frozen}/trainer_state.json", state)
    assert last.name == f"checkpoint-{state['global_step']}"
    shutil.rmtree(here / "runs")


def thaw_run(here: Path, name: str) -> Path:
    """Put the folder of a run that was trained to its end where av-train looks for it."""
    if WRITE:
        write_frozen_run(here, name)
    tone = here / "runs/tone"
    tone.mkdir(parents=True)
    settings = trl_defaults(here) | read(FROZEN / f"training/{name}/settings.json")
    (tone / "settings.json").write_text(json.dumps(settings), "utf-8")
    return tone


def assert_vector_of_run(here: Path, name: str, seconds: float | None) -> None:
    """Assert that the vector is there, with the frozen history, and the run is not any more."""
    assert not any((here / "runs").iterdir()), "the run was not known as one"
    assert (here / f"avs/tone/{WEIGHTS}").read_bytes() == (here / f"tone/{WEIGHTS}").read_bytes()
    history = read(FROZEN / f"training/{name}/history.json")
    assert read(here / f"avs/tone/{METADATA}")["training"] == {**history, "seconds": seconds}


@pytest.mark.parametrize("name", RUNS)
def test_a_trained_run_is_known_and_its_vector_written(here, name):
    """It was killed before its vector was written."""
    tone = thaw_run(here, name)
    history = FROZEN / f"training/{name}/history.json"
    shutil.copyfile(history, tone / "history.json")
    (tone / "aligned.json").write_text(json.dumps(["config.json", WEIGHTS]), "utf-8")
    shutil.copytree(here / "tone-aligned", tone / "aligned")
    if name == "paper":
        again = av_train(name)
        assert "runs/tone holds an earlier run: continue it with --resume" in again.stderr
        other = av_train(name, "--resume", "--weight_decay", "0.5")
        assert "runs/tone was started with weight_decay 0.0, not 0.5" in other.stderr
        assert (again.exit_code, other.exit_code) == (1, 1)

    result = av_train(name, "--resume")
    assert result.exit_code == 0, (result.output, result.exception)
    assert_vector_of_run(here, name, read(history)["seconds"])


def test_a_run_whose_last_checkpoint_is_whole_is_not_trained_again(here):
    """It was killed before its aligned model was written: manifest.json says what is whole."""
    tone, frozen = thaw_run(here, "spectrum"), FROZEN / "training/spectrum"
    step = read(frozen / "trainer_state.json")["global_step"]
    checkpoint = Path(shutil.copytree(here / "tone-aligned", tone / f"checkpoint-{step}"))
    shutil.copyfile(frozen / "trainer_state.json", checkpoint / "trainer_state.json")
    (checkpoint / "part").mkdir()
    (checkpoint / "part/state.json").write_text("{}", "utf-8")
    names = ("config.json", WEIGHTS, "part/state.json", "trainer_state.json")
    sizes = {name: (checkpoint / name).stat().st_size for name in names}
    (checkpoint / "manifest.json").write_text(json.dumps(sizes), "utf-8")

    result = av_train("spectrum", "--resume")
    assert result.exit_code == 0, (result.output, result.exception)
    assert_vector_of_run(here, "spectrum", None)


def test_a_trained_and_calibrated_vector_is_read_with_every_field(here):
    """Its metadata is what a training and a sweep of today leave."""
    av = Path(shutil.copytree("tone", "full"))
    content = read(av / METADATA)
    if WRITE:
        content["name"] = "Ton für Gäste"
        content["base"]["revision"] = "a" * 40
        content["training"] = read(FROZEN / "training/paper/history.json")
        content["calibration"] = read(FROZEN / "calibration.json")
        same("full.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    shutil.copyfile(FROZEN / "full.json", av / METADATA)
    vector = AlignmentVector.open(av)
    content = read(FROZEN / "full.json")
    assert_read(vector, content)
    for level, best in content["calibration"]["levels"].items():
        if best["lambda"] is not None:
            assert vector.metadata.calibrated(level) == best["lambda"]
    assert any(best["lambda"] is not None for best in content["calibration"]["levels"].values())
    assert vector.metadata.to_json() == (FROZEN / "full.json").read_text("utf-8")
    assert "full" in succeed("av-check", av).stdout


# The commands

HELP = [*SCRIPTS, *(f"av-synth {name}" for name in (
    "agreement", "annotate", "clean", "personas", "queries", "responses", "run",
))]  # fmt: skip


@pytest.mark.parametrize("name", HELP)
def test_help(name):
    script, *words = name.split()
    result = run(script, *words, "--help", terminal_width=100)
    assert result.exit_code == 0
    same(f"help/{name.replace(' ', '_')}.txt", result.stdout)


def test_every_command_has_a_frozen_help():
    known = set()
    for script, target in SCRIPTS.items():
        loaded = EntryPoint(script, target, "console_scripts").load()
        inner = loaded.commands if isinstance(loaded, click.Group) else {}
        known |= {script, *(f"{script} {name}" for name in inner)}
    assert known == set(HELP)


NOWHERE = "./no/such"
EXIT_CODES = [
    (2, "av-extract"),
    (2, "av-extract", "a", "b", "c", "--dtype", "int8"),
    (1, "av-extract", NOWHERE, NOWHERE, "out"),
    (2, "av-check"),
    (1, "av-check", NOWHERE),
    (2, "av-eval", NOWHERE, "--data", "x.jsonl"),
    (2, "av-eval", NOWHERE, "--split", "all"),
    (2, "av-eval", NOWHERE, "--domain", "medical", "--judge-sample", "3"),
    (1, "av-eval", NOWHERE, "--domain", "medical"),
    (1, "av-eval", NOWHERE, "--domain", "no-such"),
    (2, "av-sweep", "--av", NOWHERE),
    (2, "av-sweep", "--av", NOWHERE, "--out", "out", "--lambda", "x"),
    (1, "av-sweep", "--av", NOWHERE, "--out", "out"),
    (1, "av-search", "--av", NOWHERE, "--all", "--out", "out"),
    (2, "av-search", "--av", "tone", "--out", "out.yml"),
    (2, "av-search", "--av", "tone", "--want", "tone", "--out", "out.yml"),
    (1, "av-export", NOWHERE, "--lora", "--out", "out"),
    (1, "av-export", NOWHERE, "--lora", "--rank", "2", "--out", "out"),
    (2, "av-push", NOWHERE, "me/x", "--create-pr", "--revision", "x"),
    (1, "av-push", NOWHERE, "me/x"),
    (2, "av-train"),
    (2, "av-train", "--domain", "medical", "--joint", "medical=expert"),
    (1, "av-train", "--domain", "no-such"),
    (2, "av-train", "--domain", "tone.yml", "--no_such_field", "1"),
    (2, "av-synth"),
    (2, "av-synth", "no-such"),
    (1, "av-synth", "queries", NOWHERE),
    (2, "av-synth", "personas", "--domain", "medical"),
]


@pytest.mark.parametrize("case", EXIT_CODES, ids=lambda case: " ".join(map(str, case[1:])))
def test_exit_codes(here, case):
    code, script, *arguments = case
    result = run(script, *arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception


def test_names_that_scripts_and_programs_use():
    own = distribution("mergekit-av").entry_points
    assert {entry.name for entry in own if entry.group == "console_scripts"} == {
        "av-check", "av-eval", "av-export", "av-extract", "av-push", "av-search", "av-sweep",
        "av-synth", "av-train",
    }  # fmt: skip
    [plugin] = [entry for entry in own if entry.group == "pydantic"]
    assert (plugin.name, plugin.value) == ("mergekit_av", "mergekit_av.pydantic_plugin:plugin")
    assert {entry.group for entry in own} == {"console_scripts", "pydantic"}
    assert mergekit_av.__all__ == [
        "AlignmentVector", "AVError", "Domain", "Knobs", "Record", "export_lora", "extract",
        "load_domain", "load_records", "mean_log_probs", "__version__",
    ]  # fmt: skip
    assert all(getattr(mergekit_av, name) is not None for name in mergekit_av.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", mergekit_av.__version__)


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    os.environ["WRITE_FROZEN"] = "1"
    sys.exit(pytest.main([__file__, "-p", "no:randomly", "-p", "no:xdist"]))
