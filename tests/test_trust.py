"""What comes from strangers: refused in one line, and nothing of it executed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from damage import edit_json, split
from test_hub import refused

from mergekit_av import AlignmentVector, AVError, extract
from mergekit_av.checkpoint import INDEX, SINGLE, Checkpoint
from mergekit_av.models import load_model, load_tokenizer

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
