"""What comes from strangers: refused in one line, and nothing of it executed."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from damage import edit_json, split
from hub_client import refused
from merging import make_recipe, refusal

from mergekit_av import AlignmentVector, AVError, extract
from mergekit_av.export.hub import prepare
from mergekit_av.export.peft import export_lora
from mergekit_av.io.checkpoint import INDEX, SINGLE, Checkpoint
from mergekit_av.models.load import load_model, load_shape, load_tokenizer

RAN = "import pathlib; pathlib.Path({!r}).touch()"


class Bomb:
    """A pickle that leaves a trace where it is opened."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (os.mknod, (str(self.trace),))


@pytest.fixture
def av(vectors, tmp_path) -> Path:
    return Path(shutil.copytree(vectors["legal"], tmp_path / "av"))


@pytest.fixture
def trace(tmp_path) -> Path:
    """A file that appears where code of a stranger runs."""
    return tmp_path / "ran"


def with_code(folder: Path, trace: Path, model_type: str | None = None) -> None:
    """Make a folder bring an architecture of its own."""
    for name in ("configuration_x.py", "modeling_x.py", "tokenization_x.py"):
        (folder / name).write_text(RAN.format(str(trace)), "utf-8")
    classes = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    edit_json(folder / "config.json", lambda c: c.update(auto_map=classes))
    if model_type:
        edit_json(folder / "config.json", lambda c: c.update(model_type=model_type))


def link_out(folder: Path, name: str) -> None:
    """Replace a file by a link to where it is now, outside."""
    outside = folder.parent / f"outside-{name}"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)


def long_header(file: Path) -> None:
    """A safetensors file whose header is said to be as long as memory."""
    file.write_bytes((1 << 40).to_bytes(8, "little") + file.read_bytes()[8:])


def a_shard_elsewhere(folder: Path) -> None:
    """An index that names a file of the machine."""
    split(folder)
    elsewhere = {"model.norm.weight": "../outside.safetensors"}
    edit_json(folder / INDEX, lambda index: index["weight_map"].update(elsewhere))


def says(change: dict):
    """An edit of the metadata."""

    def edit(folder: Path) -> None:
        def merge(content: dict) -> None:
            for key, value in change.items():
                content[key] = {**content[key], **value} if isinstance(value, dict) else value

        edit_json(folder / "alignment_vector.json", merge)

    return edit


HOSTILE = {
    "a pickle": (lambda f: (f / "adapter.bin").write_bytes(b"x"), "adapter.bin may be a pickle"),
    "a pickle below": (
        lambda f: ((f / "sub").mkdir(), (f / "sub" / "x.pkl").write_bytes(b"x")),
        "x.pkl may be a pickle",
    ),
    "code": (lambda f: (f / "modeling.py").write_text("1", "utf-8"), "modeling.py is code"),
    "an architecture of its own": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(auto_map={"AutoConfig": "x.X"})),
        "names code of its own",
    ),
    "linked weights": (lambda f: link_out(f, SINGLE), "is a link that leads out of its folder"),
    "a linked config": (lambda f: link_out(f, "config.json"), "is a link that leads out"),
    "a long header": (lambda f: long_header(f / SINGLE), "truncated or damaged .*header too large"),
    "a shard elsewhere": (a_shard_elsewhere, "names '../outside.safetensors', which is no file"),
    "another dtype": (
        says({"precision": {"dtype": "float32"}}),
        "speaks of .* in float32, and its",
    ),
    "other weights": (says({"statistics": {"weights": 7}}), "speaks of 7 weights"),
    "another fingerprint": (says({"fingerprint": "0" * 32}), "not those that were written"),
    "a name that is a number": (says({"name": 5}), "name is missing, or not what it must be"),
    "levels that are none": (says({"levels": "all"}), "levels is missing, or not"),
    "a norm that is text": (says({"statistics": {"norm": "big"}}), "statistics.norm is missing"),
    "a base that is a list": (says({"base": {"id": ["x"]}}), "base.id is missing, or not"),
    "a training that is text": (says({"training": "yes"}), "training is missing, or not"),
    "no mapping": (says({"precision": ["dtype", "difference"]}), "precision is no mapping"),
    "metadata without end": (
        lambda f: (f / "alignment_vector.json").write_text("[" * 100_000, "utf-8"),
        "alignment_vector.json cannot be read",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_vector_is_refused_in_one_line(av, what):
    harm, message = HOSTILE[what]
    harm(av)
    with pytest.raises(AVError, match=message) as caught:
        AlignmentVector.open(av).check()
    assert "\n" not in str(caught.value)


ON_THE_HUB = ["a pickle", "code", "a long header", "a shard elsewhere", "other weights"]


@pytest.mark.parametrize("what", ON_THE_HUB)
def test_a_hostile_vector_on_the_hub_is_refused_in_one_line(hub, client, av, base, tmp_path, what):
    harm, message = HOSTILE[what]
    harm(av)
    hub.add_repo("bad/av", {file.name: file.read_bytes() for file in av.iterdir()})
    message = message.split(" .*")[0]
    assert message in refused(client, "av-check", "bad/av")
    recipe = {
        "merge_method": "alignment_vector",
        "base_model": str(base),
        "models": [{"model": "bad/av", "parameters": {"lambda": 1}}],
    }
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe), "utf-8")
    ended = client.run("mergekit-yaml", "recipe.yml", "out")
    assert ended.code == 1
    assert not list(tmp_path.glob("out/*.safetensors"))
    assert not hub.asked(r"GET .*(\.bin|\.py)$")


def test_a_repository_whose_paths_lead_out_is_refused(hub, client, av, tmp_path):
    files = {file.name: file.read_bytes() for file in av.iterdir()}
    hub.add_repo("bad/av", {**files, "../../../../../../escaped.json": b"{}"})
    refused(client, "av-check", "bad/av")
    assert not list(tmp_path.parent.rglob("escaped.json"))
    assert not list(client.home.parent.rglob("escaped.json"))


def test_a_repository_with_nothing_but_pickles_is_refused_unopened(hub, client, tmp_path, trace):
    torch.save({"x": Bomb(trace)}, tmp_path / "pytorch_model.bin")
    content = (tmp_path / "pytorch_model.bin").read_bytes()
    assert b"mknod" in content
    hub.add_repo("bad/model", {"config.json": b"{}", "pytorch_model.bin": content})
    line = refused(client, "av-extract", "bad/model", "me/base", "out")
    assert "holds no model.safetensors" in line
    assert not hub.asked("GET .*pytorch_model.bin")
    assert not trace.exists()


def test_an_architecture_that_needs_its_own_code_is_refused(base, tmp_path, trace):
    model = Path(shutil.copytree(base, tmp_path / "model"))
    with_code(model, trace, model_type="strange")
    with pytest.raises(AVError, match=r"names code of its own .*, which is never run"):
        load_model(model)
    assert not trace.exists()


def test_a_known_architecture_is_loaded_without_the_code_beside_it(base, tmp_path, trace):
    model = Path(shutil.copytree(base, tmp_path / "model"))
    with_code(model, trace)
    edit_json(
        model / "tokenizer_config.json",
        lambda c: c.update(auto_map={"AutoTokenizer": ["tokenization_x.X", None]}),
    )
    assert type(load_model(model)).__name__ == "LlamaForCausalLM"
    load_tokenizer(model)
    assert not trace.exists()


KERNELS = """
import pathlib, types
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    def anything(*args, **kwargs):
        if name == "get_kernel":
            pathlib.Path({trace!r}).touch()
            return types.ModuleType("kernel")
        return lambda decorated: decorated
    return type(name, (), {{"__init__": lambda self, *a, **k: None}}) if name[0].isupper() else anything
"""


@pytest.fixture
def with_kernels(tmp_path, trace) -> dict[str, str]:
    """The environment of a process in which the package `kernels` is installed, and leaves a trace
    where a kernel is asked of it."""
    site = tmp_path / "site"
    (site / "kernels-0.18.5.dist-info").mkdir(parents=True)
    (site / "kernels-0.18.5.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.5\n"
    )
    (site / "kernels.py").write_text(KERNELS.format(trace=str(trace)))
    return {**os.environ, "PYTHONPATH": str(site)}


def loads(model: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """What becomes of a model and its tokenizer in a process of their own."""
    program = (
        "import sys; from mergekit_av import AVError; from mergekit_av.models.load import *\n"
        "for load in (load_shape, load_model, load_tokenizer):\n"
        "    try: print(type(load(sys.argv[1])).__name__)\n"
        "    except AVError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, model]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


REPOSITORY = "owner/repo"
NAMING_CODE = {
    "attention": {"_attn_implementation": REPOSITORY},
    "attention at a revision": {"_attn_implementation": f"{REPOSITORY}@main:forward"},
    "attention in public": {"attn_implementation": REPOSITORY},
    "paged attention": {"attn_implementation": f"paged|{REPOSITORY}"},
    "attention inside": {"_attn_implementation_internal": REPOSITORY},
    "attention of each part": {"attn_implementation": {"": "sdpa", "text_config": REPOSITORY}},
    "attention of a part": {"text_config": {"_attn_implementation": REPOSITORY}},
    "attention in a list": {"per_layer_config": [{"attn_implementation": REPOSITORY}]},
    "a local kernel": {"_attn_implementation": "/tmp/kernel"},
    "experts": {"_experts_implementation": REPOSITORY},
    "experts of a repository": {"experts_implementation": "sonicmoe"},
    "kernels": {"use_kernels": True},
    "a mapping of kernels": {"kernel_config": {"kernel_mapping": {"RMSNorm": REPOSITORY}}},
    "code of a part": {"vision_config": {"auto_map": {"AutoModel": f"{REPOSITORY}--x.X"}}},
    "another configuration": {"configuration_files": ["config.4.0.0.json"]},
    "a way to generate": {"custom_generate": REPOSITORY},
}


@pytest.mark.parametrize("what", NAMING_CODE)
def test_a_configuration_that_names_code_is_refused(base, vectors, aligned, tmp_path, what):
    model = Path(shutil.copytree(base, tmp_path / "model"))
    av = Path(shutil.copytree(vectors["legal"], tmp_path / "av"))
    for folder in (model, av):
        edit_json(folder / "config.json", lambda c: c.update(NAMING_CODE[what]))
    for use in (
        lambda: load_model(model),
        lambda: load_shape(model),
        lambda: load_tokenizer(model),
        lambda: AlignmentVector.open(av),
        lambda: extract(model, aligned, tmp_path / "out"),
        lambda: extract(aligned, model, tmp_path / "out"),
        lambda: prepare(model, "me/model"),
        lambda: prepare(av, "me/av"),
    ):
        with pytest.raises(AVError, match=r"config.json names code .*remove the entry"):
            use()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["attention", "another configuration"])
def test_a_recipe_whose_base_names_code_is_refused(base, vectors, tmp_path, what):
    model = Path(shutil.copytree(base, tmp_path / "model"))
    edit_json(model / "config.json", lambda c: c.update(NAMING_CODE[what]))
    recipe = make_recipe(model, {vectors["legal"]: 1})
    assert "names code" in refusal(recipe, tmp_path / "out")


def test_no_kernel_of_a_repository_is_asked_for(base, tmp_path, trace, with_kernels):
    model = Path(shutil.copytree(base, tmp_path / "model"))
    edit_json(model / "config.json", lambda c: c.update(_attn_implementation=REPOSITORY))
    assert loads(model, with_kernels).stdout.count("names code of a repository") == 3
    assert not trace.exists()


def test_a_kernel_would_leave_its_trace(base, tmp_path, trace, with_kernels):
    model = Path(shutil.copytree(base, tmp_path / "model"))
    edit_json(model / "config.json", lambda c: c.update(_attn_implementation=REPOSITORY))
    program = "import sys, transformers as t; t.AutoModelForCausalLM.from_pretrained(sys.argv[1])"
    command = [sys.executable, "-c", program, model]
    subprocess.run(command, env=with_kernels, capture_output=True, timeout=300)
    assert trace.exists()


def test_flash_attention_is_not_fetched_where_it_is_not_installed(
    base, tmp_path, trace, with_kernels
):
    model = Path(shutil.copytree(base, tmp_path / "model"))
    edit_json(model / "config.json", lambda c: c.update(_attn_implementation="flash_attention_2"))
    said = loads(model, with_kernels)
    assert said.stdout.split() == ["LlamaForCausalLM"] * 2 + ["TokenizersBackend"], said
    assert not trace.exists()


def test_attention_that_transformers_has_is_kept(base, tmp_path):
    model = Path(shutil.copytree(base, tmp_path / "model"))
    edit_json(model / "config.json", lambda c: c.update(attn_implementation="eager"))
    assert load_model(model).config._attn_implementation == "eager"


def test_no_question_about_code_is_asked(base, tmp_path, trace, monkeypatch):
    """transformers would ask, of a known configuration without a causal LM, and run what is told."""
    monkeypatch.setattr("builtins.input", lambda _: "y")
    model = Path(shutil.copytree(base, tmp_path / "model"))
    with_code(model, trace, model_type="clip")
    for load in (load_shape, load_model):
        with pytest.raises(AVError, match="is no causal LM"):
            load(model)
    assert not trace.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_tokenizer_is_loaded_as_nothing_else(base, tmp_path, file):
    model = Path(shutil.copytree(base, tmp_path / "model"))
    edit_json(model / file, lambda c: c.update(tokenizer_class="AutoModelForCausalLM"))
    with pytest.raises(AVError, match="'AutoModelForCausalLM' is no tokenizer"):
        load_tokenizer(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_mapping": {"parent_library": "strange.module"}}, "names code to import"),
        ({"megatron_core": "strange.module", "megatron_config": {}}, "names code to import"),
        ({"megatron_config": {"x": 1}}, "has `megatron_config`"),
        (
            {"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}},
            "adapter",
        ),
        ({"peft_type": "XLORA", "adapters": {"0": REPOSITORY}}, "adapter that is not merged"),
        ({"peft_type": ["LORA"]}, "adapter that is not merged"),
    ],
)
def test_an_adapter_that_names_code_is_refused(vectors, base, tmp_path, change, message):
    adapter = tmp_path / "adapter"
    export_lora(AlignmentVector.open(vectors["legal"]), adapter, 4)
    edit_json(adapter / "adapter_config.json", lambda c: c.update(change))
    with pytest.raises(AVError, match=message):
        extract(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["X.PKL", "sub/x.PY", "sub/x.so", "sub/deep/x.Bin", "x.pyc", "x.npy", "evil.model"]
)
def test_a_kind_of_file_that_has_no_place_in_a_vector_is_refused(av, name):
    (av / name).parent.mkdir(parents=True, exist_ok=True)
    (av / name).write_bytes(b"x")
    with pytest.raises(AVError, match=rf"{Path(name).name} .*remove it"):
        AlignmentVector.open(av)


def test_a_link_below_a_vector_is_refused(av, tmp_path):
    (av / "sub").mkdir()
    (av / "sub" / "notes.md").symlink_to("/etc/hostname")
    with pytest.raises(AVError, match="is a link that leads out of its folder"):
        AlignmentVector.open(av)


def test_what_people_and_tools_leave_in_a_vector_is_taken(av):
    for name in (
        "LICENSE", "LICENSE-2.0", "NOTES.MD", "sweep.png", ".gitattributes", "tokenizer.model",
        ".cache/huggingface/.gitignore", ".cache/huggingface/CACHEDIR.TAG",
        ".cache/huggingface/download/config.json.metadata", ".git/HEAD", ".git/hooks/push.sample",
    ):  # fmt: skip
        (av / name).parent.mkdir(parents=True, exist_ok=True)
        (av / name).write_bytes(b"x")
    AlignmentVector.open(av).check()


TOO_LARGE = {
    "layers": {"num_hidden_layers": 10**9},
    "more modules than tensors": {"num_hidden_layers": 90_000},
    "labels": {"num_labels": 10**9},
    "a vocabulary": {"vocab_size": 10**12},
    "a number without end": {"num_hidden_layers": 10**400},
}


@pytest.mark.parametrize("what", TOO_LARGE)
def test_a_configuration_that_asks_for_too_much_is_refused_soon(base, tmp_path, what):
    model = Path(shutil.copytree(base, tmp_path / "model"))
    edit_json(model / "config.json", lambda c: c.update(TOO_LARGE[what]))
    began = time.monotonic()
    with pytest.raises(AVError, match=r"no model has|asks for more|asks for|cannot be read"):
        load_model(model)
    assert time.monotonic() - began < 60


def test_a_vector_of_such_a_base_does_not_pass_its_code_on(base, aligned, tmp_path, trace):
    model = Path(shutil.copytree(base, tmp_path / "model"))
    with_code(model, trace)
    vector = extract(model, aligned, tmp_path / "av")
    config = json.loads((vector.folder / "config.json").read_text("utf-8"))
    wanted = json.loads((base / "config.json").read_text("utf-8"))
    assert config == wanted


def test_a_snapshot_in_the_cache_consists_of_links_and_is_taken(hub, client, av):
    hub.add_repo("me/av", {file.name: file.read_bytes() for file in av.iterdir()})
    assert client.run("av-check", "me/av").code == 0
    (weights,) = client.home.rglob(f"snapshots/*/{SINGLE}")
    assert weights.is_symlink()
    outside = client.home / "elsewhere.safetensors"
    shutil.copy(weights, outside)
    weights.unlink()
    weights.symlink_to(outside)
    assert "is a link that leads out of its folder" in refused(client, "av-check", "me/av")


def test_a_checkpoint_may_be_linked(base, tmp_path):
    """One's own models may lie wherever one likes; it is what is published that must not."""
    model = Path(shutil.copytree(base, tmp_path / "model"))
    link_out(model, SINGLE)
    assert len(Checkpoint(model)) == len(Checkpoint(base))
