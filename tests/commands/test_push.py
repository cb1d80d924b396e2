"""av-push and Hub ids everywhere, over real HTTP against a Hub of our own."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cards import front_matter, recipe_of
from damage import DAMAGES, edit_json, edit_tensors, split
from hub_client import TOKEN, refused
from hub_server import PART, Fault, User
from tiny import perturb
from training_runs import write_domain

from mergekit_av import AlignmentVector, AVError
from mergekit_av.export.hub import prepare
from mergekit_av.io.checkpoint import INDEX, SINGLE, Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.vectors.extraction import extract
from mergekit_av.vectors.low_rank_delta import ADAPTER

BOTH_WAYS = pytest.mark.parametrize("client", ["xet", "lfs"], indirect=True)
BY_LFS = pytest.mark.parametrize("client", ["lfs"], indirect=True)
AV_FILES = {"README.md", "alignment_vector.json", "config.json", SINGLE}
FEW = ["--domain", "medical"]


def pushed(client, *arguments, **environment) -> str:
    """What av-push prints: an address, and nothing else."""
    ended = client.run("av-push", *arguments, **environment)
    assert ended.code == 0, ended.err
    (address,) = ended.out.splitlines()
    return address


@pytest.fixture
def av(vectors, tmp_path) -> Path:
    """A copy of the legal vector in the client's folder."""
    return shutil.copytree(vectors["legal"], tmp_path / "legal")


@pytest.fixture
def model(base, tmp_path) -> Path:
    """A checkpoint that mergekit has not made, in the client's folder."""
    return shutil.copytree(base, tmp_path / "model")


# --- the whole path ----------------------------------------------------------------------------


def test_push_then_a_recipe_by_id_then_av_eval_then_push_of_the_merge(
    hub, client, av, base, tmp_path
):
    address = pushed(client, "legal", "me/legal-av", "--base", "me/base")
    repo = hub.repos["me/legal-av"]
    assert address == f"{hub.url}/me/legal-av/commit/{repo.refs['main']}"
    assert repo.files().keys() == AV_FILES | {".gitattributes"}
    assert repo.files()[SINGLE] == (av / SINGLE).read_bytes()

    # What a stranger copies from the page merges as it is.
    recipe = recipe_of(repo.files()["README.md"])
    assert recipe["base_model"] == f"me/base@{hub.repos['me/base'].refs['main']}"
    recipe["models"][0]["parameters"]["lambda"] = -1.2
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe), "utf-8")
    ended = client.run("mergekit-yaml", "recipe.yml", "out", HF_TOKEN=None)
    assert ended.code == 0, ended.err
    local = {**recipe, "base_model": str(base)}
    local["models"] = [{**recipe["models"][0], "model": "./legal"}]
    (tmp_path / "local.yml").write_text(yaml.safe_dump(local), "utf-8")
    assert client.run("mergekit-yaml", "local.yml", "same").code == 0
    assert (tmp_path / "out" / SINGLE).read_bytes() == (tmp_path / "same" / SINGLE).read_bytes()

    pushed(client, "out", "me/merged")
    merged = hub.repos["me/merged"].files()
    assert merged[SINGLE] == (tmp_path / "out" / SINGLE).read_bytes()
    assert front_matter(merged["README.md"])["base_model"] == ["me/base", "me/legal-av"]
    assert recipe_of(merged["README.md"]) == recipe
    assert "| me/legal-av | -1.2 |" in merged["README.md"].decode()

    by_id = client.run("av-eval", "me/merged", *FEW, "--json", "id.json", HF_TOKEN=None)
    by_folder = client.run("av-eval", "out", *FEW, "--json", "folder.json")
    assert by_id.code == 0, by_id.err
    assert by_id.out.splitlines()[1:] == by_folder.out.splitlines()[1:]
    reports = [json.loads((tmp_path / f"{n}.json").read_text("utf-8")) for n in ("id", "folder")]
    assert reports[0]["fingerprint"] == reports[1]["fingerprint"]


@BOTH_WAYS
def test_both_ways_of_sending_large_files(hub, client, av):
    """By Xet where hf_xet is installed, which is everywhere; by LFS where it is disabled."""
    pushed(client, "legal", "me/legal-av")
    assert hub.repos["me/legal-av"].files()[SINGLE] == (av / SINGLE).read_bytes()
    sent = {"xet": "POST /cas/v1/xorbs/", "lfs": "PUT /lfs/"}
    assert {way for way, line in sent.items() if hub.asked(line)} == {client.transport}
    assert client.run("av-check", "me/legal-av").code == 0
    fetched = {"xet": "GET /cas/v1/reconstructions/", "lfs": "GET /network/"}
    assert {way for way, line in fetched.items() if hub.asked(line)} == {client.transport}


@BY_LFS
def test_a_large_file_in_parts(hub, client, base, tmp_path):
    vector = extract(base, perturb(base, tmp_path / "a"), tmp_path / "large", dtype="float32")
    assert (vector.folder / SINGLE).stat().st_size > PART
    pushed(client, "large", "me/large-av")
    assert hub.repos["me/large-av"].files()[SINGLE] == (vector.folder / SINGLE).read_bytes()
    assert len(hub.asked(r"PUT /lfs/\w+/\d")) == 2


def test_a_folder_that_was_downloaded_is_used_without_the_hub(hub, client, av, base, tmp_path):
    pushed(client, "legal", "me/legal-av", "--base", "me/base")
    program = "from huggingface_hub import snapshot_download as s; s(*arguments, local_dir='here')"
    assert client.run("python", program, "me/legal-av").code == 0
    hub.requests.clear()
    recipe = {"merge_method": "alignment_vector", "base_model": str(base)}
    recipe["models"] = [{"model": "./here", "parameters": {"lambda": 1}}]
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe), "utf-8")
    ended = client.run("mergekit-yaml", "recipe.yml", "out", "--no-write-model-card")
    assert ended.code == 0, ended.err
    assert not hub.asked("me/legal-av")


# --- av-push -----------------------------------------------------------------------------------


def test_only_what_is_meant_goes(hub, client, av, model):
    for folder in (av, model):
        (folder / "notes.txt").write_text("mine", "utf-8")
        (folder / ".env").write_text("SECRET=1", "utf-8")
        (folder / "optimizer.safetensors").write_bytes(b"x")
        (folder / "logs").mkdir()
        (folder / "logs" / "config.json").write_text("{}", "utf-8")
    pushed(client, "legal", "me/legal-av")
    pushed(client, "model", "me/model")
    assert hub.repos["me/legal-av"].files().keys() == AV_FILES | {".gitattributes"}
    assert hub.repos["me/model"].files().keys() == {
        ".gitattributes", "chat_template.jinja", "config.json", "generation_config.json", SINGLE,
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    (line,) = [r.line for r in hub.asked("POST .*/commit/") if "legal" in r.line]
    assert line.endswith("/commit/main")


def test_a_dry_run_lists_what_would_go_and_asks_nothing(hub, client, av):
    ended = client.run("av-push", "legal", "me/legal-av", "--dry-run", HF_TOKEN=None)
    assert ended.code == 0
    listed = dict(reversed(line.split()) for line in ended.out.splitlines())
    assert listed.keys() == AV_FILES
    assert listed[SINGLE] == f"{(av / SINGLE).stat().st_size:,}"
    assert "is a folder of yours, which nobody else has" in ended.err
    assert "the license of the base, tiny-llama, is unknown" in ended.err
    assert not hub.requests


def test_pushed_again_nothing_changes_and_the_same_address_is_printed(hub, client, av):
    first = pushed(client, "legal", "me/legal-av")
    assert pushed(client, "legal", "me/legal-av") == first
    assert len(hub.repos["me/legal-av"].commits) == 2  # the Hub's own, and ours


def test_shards_go_with_their_index_and_replace_the_single_file(hub, client, av):
    pushed(client, "legal", "me/legal-av")
    shards = split(av)
    pushed(client, "legal", "me/legal-av")
    files = hub.repos["me/legal-av"].files()
    assert files.keys() == AV_FILES - {SINGLE} | {".gitattributes", INDEX, *shards}
    ended = client.run("av-check", "me/legal-av")
    assert ended.code == 0, ended.err


def test_a_private_repository_is_for_its_owner(hub, client, av):
    pushed(client, "legal", "me/legal-av", "--private")
    assert hub.repos["me/legal-av"].private
    assert client.run("av-check", "me/legal-av").code == 0
    shutil.rmtree(client.home)
    hub.users["hf_other"] = User("other")
    for token in (None, "hf_other"):
        line = refused(client, "av-check", "me/legal-av", HF_TOKEN=token)
        assert "there is no such repository, or it is private" in line


def test_private_is_not_asked_for_in_vain(hub, client, av):
    pushed(client, "legal", "me/legal-av")
    line = refused(client, "av-push", "legal", "me/legal-av", "--private")
    assert "me/legal-av is there and public" in line


def test_a_branch_is_made_and_read_by_its_name(hub, client, av, base, tmp_path):
    pushed(client, "legal", "me/legal-av", "--base", "me/base")
    other = extract(base, perturb(base, tmp_path / "a", seed=5), tmp_path / "other", name="other")
    address = pushed(client, "other", "me/legal-av", "--base", "me/base", "--revision", "v2/test")
    repo = hub.repos["me/legal-av"]
    assert address.endswith(repo.refs["v2/test"])
    assert repo.files("main")[SINGLE] == (av / SINGLE).read_bytes()
    assert repo.files("v2/test")[SINGLE] == (other.folder / SINGLE).read_bytes()
    opened = "from mergekit_av import AlignmentVector as A; print(A.open(*arguments).metadata.name)"
    for source in (["me/legal-av", "v2/test"], ["me/legal-av@v2/test"]):
        assert client.run("python", opened, *source).out == "other\n"
    assert client.run("python", opened, "me/legal-av").out == "legal\n"
    pushed(client, "other", "me/legal-av", "--base", "me/base", "--revision", "v2/test")


def test_a_pull_request_leaves_main_as_it_is(hub, client, av):
    hub.users["hf_other"] = User("other")
    hub.add_repo("me/legal-av", {"README.md": b"# to come\n"})
    before = hub.repos["me/legal-av"].refs["main"]
    address = pushed(client, "legal", "me/legal-av", "--create-pr", HF_TOKEN="hf_other")
    assert address == f"{hub.url}/me/legal-av/discussions/1"
    repo = hub.repos["me/legal-av"]
    assert repo.refs["main"] == before
    assert repo.files("refs/pr/1").keys() == AV_FILES
    assert client.run("av-check", "me/legal-av@refs/pr/1").code == 0


def test_a_commit_message(hub, client, av):
    pushed(client, "legal", "me/legal-av")
    pushed(client, "legal", "me/legal-av", "--revision", "v1", "--commit-message", "First")
    repo = hub.repos["me/legal-av"]
    assert repo.messages[repo.refs["main"]] == "Upload alignment vector legal"
    (av / "README.md").write_text("---\nlicense: mit\n---\n", "utf-8")
    pushed(client, "legal", "me/legal-av", "--commit-message", "Say the license")
    assert repo.messages[repo.refs["main"]] == "Say the license"


def test_a_name_without_owner_is_the_users(hub, client, av):
    assert f"{hub.url}/me/legal-av/commit/" in pushed(client, "legal", "legal-av")


def test_from_python(hub, client, av):
    program = """
from training_runs import write_domain

from mergekit_av import AlignmentVector
vector = AlignmentVector.open("legal")
print(vector.push_to_hub("me/legal-av", token=arguments[0], private=True, revision="v1",
                         commit_message="From Python", base="me/base"))
again = AlignmentVector.open("me/legal-av", revision="v1", token=arguments[0])
again.check()
print(again.metadata.base.id, again.metadata.fingerprint == vector.metadata.fingerprint)
print(vector.push_to_hub("me/legal-av", token=arguments[0], create_pr=True, base="me/base"))
"""
    ended = client.run("python", program, TOKEN, HF_TOKEN=None)
    assert ended.code == 0, ended.err
    address, same, proposal = ended.out.splitlines()
    assert address.endswith(hub.repos["me/legal-av"].refs["v1"])
    assert same == "me/base True" and proposal.endswith("/discussions/1")
    assert TOKEN not in "".join(str(path) for path in client.home.rglob("*"))


def test_a_repositorys_gitignore_leaves_nothing_out(hub, client, av):
    hub.add_repo("me/legal-av", {".gitignore": b"*.safetensors\n*.json\n"})
    pushed(client, "legal", "me/legal-av")
    assert hub.repos["me/legal-av"].files().keys() == AV_FILES | {".gitignore"}


@BOTH_WAYS
def test_a_server_without_xet_is_named(hub, client, av):
    hub.offer_xet = False
    ended = client.run("av-push", "legal", "me/legal-av")
    if client.transport == "lfs":
        assert ended.code == 0, ended.err
    else:
        assert ended.code == 1
        assert "this server does not offer Xet: set HF_HUB_DISABLE_XET=1" in ended.error
        assert hub.repos["me/legal-av"].files().keys() == {".gitattributes"}


# --- what is not pushed ------------------------------------------------------------------------


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_vector_is_refused_before_a_byte_leaves(av, what):
    from mergekit_av.errors import AVError

    damage, message = DAMAGES[what]
    damage(av)
    if what == "no metadata":  # a checkpoint like any other
        return
    with pytest.raises(AVError, match=message):
        prepare(av, "me/legal-av")


def _nan(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors["model.norm.weight"][:1].fill_(float("nan")))


def _without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


SPOILT_MODELS = {
    "no tokenizer": (
        _without_tokenizer,
        "has no tokenizer: merge it again, or copy tokenizer.json",
    ),
    "NaN": (_nan, "model.norm.weight has NaN or infinite values"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "code": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(auto_map={"AutoConfig": "x.Y"})),
        "names code of its own",
    ),
    "a Python file": (
        lambda f: (f / "modeling.py").write_text("1", "utf-8"),
        "modeling.py is code",
    ),
    "a pickle": (lambda f: (f / "x.bin").write_bytes(b"1"), "x.bin may be a pickle"),
    "truncated": (DAMAGES["truncated"][0], "truncated or damaged"),
    "a missing shard": (DAMAGES["a missing shard"][0], "is missing"),
    "a link that leads out": (
        lambda f: (
            (f / "config.json").rename(f.parent / "config.json"),
            (f / "config.json").symlink_to(f.parent / "config.json"),
        ),
        "is a link that leads out of its folder",
    ),
}


@pytest.mark.parametrize("what", SPOILT_MODELS)
def test_a_spoilt_checkpoint_is_refused_before_a_byte_leaves(hub, client, model, what):
    spoil, message = SPOILT_MODELS[what]
    spoil(model)
    assert re.search(message, refused(client, "av-push", "model", "me/model"))
    assert "me/model" not in hub.repos


def test_a_merge_whose_base_has_no_tokenizer_goes_without(model, base, tmp_path):
    recipe = {
        "merge_method": "alignment_vector",
        "base_model": str(tmp_path / "bare"),
        "models": [],
    }
    (model / "mergekit_config.yml").write_text(yaml.safe_dump(recipe))
    bare = shutil.copytree(base, tmp_path / "bare")
    _without_tokenizer(model)
    with pytest.raises(AVError, match=rf"has no tokenizer: .* from {bare}"):
        prepare(model, "me/model")
    _without_tokenizer(bare)
    assert SINGLE in prepare(model, "me/model").files


def test_who_may_not_push_is_told_before_anything_is_sent(hub, client, av):
    hub.users |= {"hf_reads": User("me", "read"), "hf_other": User("other")}
    for token, message in {
        None: "no token: run `hf auth login`, or set HF_TOKEN",
        "hf_unknown": "the token is not accepted",
        "hf_reads": "the token is for reading",
        "hf_other": "other cannot make one in me",
    }.items():
        line = refused(client, "av-push", "legal", "me/legal-av", HF_TOKEN=token)
        assert message in line and (token is None or token not in line)
    line = refused(client, "av-push", "legal", "me/base", HF_TOKEN="hf_other")
    assert "the token may not do this" in line
    assert hub.repos.keys() == {"me/base"}


@pytest.mark.parametrize("name", ["a/b/c", "me/-x", "me/x..y", "me/x y", ""])
def test_what_is_no_repository_name_is_refused(hub, client, av, name):
    assert "'" in refused(client, "av-push", "legal", name, "--dry-run")
    refused(client, "av-push", "legal", name)
    assert not hub.asked("create")


def test_wrong_usage(hub, client, av, model):
    line = refused(client, "av-push", "legal", "me/x", "--create-pr", "--revision", "v", code=2)
    assert line.startswith("Error: --create-pr goes to main")
    assert "there is no folder nowhere" in refused(client, "av-push", "nowhere", "me/x")
    line = refused(client, "av-push", "legal", "me/x", "--base", "model")
    assert "--base must be the Hub id of the base, not the folder model" in line
    assert "--base is for those" in refused(client, "av-push", "model", "me/x", "--base", "me/y")


def test_a_model_is_not_replaced_by_a_vector_nor_a_vector_by_a_model(hub, client, av, model):
    line = refused(client, "av-push", "legal", "me/base")
    assert "me/base is the repository of another kind of thing, model and not" in line
    pushed(client, "legal", "me/legal-av")
    line = refused(client, "av-push", "model", "me/legal-av")
    assert "another kind of thing, alignment vector and not model" in line


def test_another_base_than_the_vectors_own_is_not_claimed(hub, client, av, aligned):
    hub.add_repo("me/aligned", {f.name: f.read_bytes() for f in aligned.iterdir()})
    line = refused(client, "av-push", "legal", "me/legal-av", "--base", "me/aligned")
    assert "is a vector of" in line and "name the repository that holds its base" in line
    assert "me/legal-av" not in hub.repos


# --- by id, everywhere -------------------------------------------------------------------------


def test_every_command_takes_ids(hub, client, av, base, aligned, tmp_path):
    pushed(client, "legal", "me/legal-av", "--base", "me/base")
    hub.add_repo("me/aligned", {f.name: f.read_bytes() for f in aligned.iterdir()})
    ended = client.run("av-check", "me/legal-av", "--base", "me/base")
    assert ended.code == 0, ended.err
    ended = client.run("av-extract", "me/base@main", "me/aligned", "made")
    assert ended.code == 0, ended.err
    metadata = AlignmentVector.open(tmp_path / "made").metadata
    commit = hub.repos["me/base"].refs["main"]
    assert (metadata.base.id, metadata.base.revision) == ("me/base", commit)
    assert metadata.base.fingerprint == fingerprint(Checkpoint(base))
    program = """
from mergekit_av import Knobs
from mergekit_av.models.load import load_model
knobs = Knobs(load_model("me/base", dtype="auto", device="cpu"), legal="me/legal-av")
knobs.set(legal=0.5)
print(knobs)
"""
    assert client.run("python", program).out == "Knobs(legal=0.5)\n"
    ended = client.run(
        "av-sweep", "--base", "me/base", "--av", "me/legal-av@main", "--lambda", "1",
        "--max-records", 1, "--generate", 0, "--no-prompting", "--out", "swept",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert (tmp_path / "swept/report.md").is_file()


def test_a_base_is_known_by_its_weights_not_by_its_name(hub, client, av, base, tmp_path):
    """The id of a base may come to mean other weights, and the same weights have many names."""
    pushed(client, "legal", "me/legal-av", "--base", "me/base")
    changed = perturb(base, tmp_path / "changed")
    repo, files = hub.repos["me/base"], {f.name: f.read_bytes() for f in changed.iterdir()}
    old = repo.refs["main"]
    hub.add_repo("me/base", files).commits[old] = repo.commits[old]
    hub.add_repo("me/copy", {f.name: f.read_bytes() for f in base.iterdir()})

    def merge(base: str):
        recipe = {"merge_method": "alignment_vector", "base_model": base}
        recipe["models"] = [{"model": "me/legal-av", "parameters": {"lambda": 1}}]
        (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe), "utf-8")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return client.run("mergekit-yaml", "recipe.yml", "out")

    assert "is a vector of me/base" in merge("me/base").error
    assert not list((tmp_path / "out").glob("*.safetensors"))
    for same in (f"me/base@{old}", "me/copy"):
        assert merge(same).code == 0
    assert client.run("av-check", "me/legal-av", "--base", f"me/base@{old}").code == 0
    assert client.run("av-check", "me/legal-av", "--base", "me/base").code == 1


OFFLINE = """
import pathlib, shutil, sys
from click.testing import CliRunner
from mergekit_av.cli.check import av_check
def check():
    result = CliRunner().invoke(av_check, ["me/legal-av"])
    print(result.exit_code, result.output.splitlines()[-1])
home = pathlib.Path(sys.argv[1])
check()
next(home.glob("hub/models--me--legal-av/snapshots/*/config.json")).unlink()
check()
shutil.rmtree(home)
check()
"""


def test_offline_the_cache_is_used_and_only_where_it_is_whole(hub, client, av):
    pushed(client, "legal", "me/legal-av")
    assert client.run("av-check", "me/legal-av").code == 0
    environment = {
        "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(client.home), "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, client.home],
        env=environment,
        capture_output=True,
        text=True,
    )
    whole, partly, nothing = done.stdout.splitlines()
    assert whole.startswith("0 ")
    assert partly.startswith("1 ") and "only a part of it is in the cache" in partly
    assert nothing.startswith("1 ") and "not in the cache, and HF_HUB_OFFLINE is set" in nothing


def test_av_train_pushes_what_it_has_made_and_keeps_it_where_that_fails(hub, client, tmp_path):
    write_domain(tmp_path)
    options = ["av-train", "--domain", "tone.yml", "--base", "me/base@main"]
    options += ["--push-to-hub", "me/tone-av"]
    hub.users["hf_reads"] = User("me", "read")
    assert "the token is for reading" in refused(client, *options, HF_TOKEN="hf_reads")
    assert not list(tmp_path.glob("avs/*")) and not list(tmp_path.glob("runs/*"))

    hub.faults = [Fault("commit/", 503)]
    ended = client.run(*options, "--private")
    assert ended.code == 1
    assert "the Hub has trouble (503)" in ended.error
    assert "push it with `av-push avs/tone me/tone-av --private`" in ended.error
    vector = AlignmentVector.open(tmp_path / "avs/tone")
    vector.check()

    ended = client.run(*options, "--private", "--resume")
    assert ended.code == 0, ended.err
    repo = hub.repos["me/tone-av"]
    assert ended.out.splitlines()[-1] == f"{hub.url}/me/tone-av/commit/{repo.refs['main']}"
    assert repo.private and repo.files()[ADAPTER] == (vector.folder / ADAPTER).read_bytes()
    base = recipe_of(repo.files()["README.md"])["base_model"]
    assert base == f"me/base@{hub.repos['me/base'].refs['main']}"


def test_av_train_is_told_early_what_it_cannot_push(client, tmp_path):
    write_domain(tmp_path)
    one, two = ["av-train", "--domain", "tone.yml"], ["--domain", "legal"]
    push = ["--push-to-hub", "me/x"]
    assert "exactly one --domain" in refused(client, *one, *two, *push, code=2)
    assert "--private goes with" in refused(client, *one, "--private", code=2)


def test_an_id_or_a_revision_that_is_not_there(hub, client):
    assert "there is no such repository" in refused(client, "av-check", "me/nothing")
    assert "it has no such revision" in refused(client, "av-check", "me/base@v9")
    assert "is no alignment vector" in refused(client, "av-check", "me/base")
