import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from damage import DAMAGES, edit_tensors, flip_bit, split, truncate
from killing import KILL_AT_EVERY_STEP
from meddling import meddle, put_thesis
from merging import make_recipe, merge
from processes import command, finish, python, start
from safetensors.torch import load_file
from tiny import ARCHITECTURES, make_model, perturb
from transformers import AutoModelForCausalLM

from mergekit_av import AlignmentVector, AVError, extract
from mergekit_av.cli.check import av_check
from mergekit_av.cli.extract import av_extract
from mergekit_av.io import checkpoint, writer
from mergekit_av.io.checkpoint import SINGLE, Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.text.card import BEGIN, END, Kept

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def differences(base: Path, aligned: Path) -> dict[str, torch.Tensor]:
    old, new = load_file(base / SINGLE), load_file(aligned / SINGLE)
    return {name: new[name].float() - old[name].float() for name in old}


def assert_tensors(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    """The folder holds exactly these tensors, bit for bit."""
    opened = Checkpoint(folder)
    assert set(opened) == set(expected)
    for name, value in expected.items():
        assert opened[name].dtype == value.dtype
        assert torch.equal(opened.read(name), value), name


def rounded(tensors: dict, dtype: torch.dtype) -> dict:
    return {name: value.to(dtype) for name, value in tensors.items()}


def run(command, *arguments: object):
    """Exit code and last line of a command."""
    result = CliRunner().invoke(command, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output.strip().splitlines()[-1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_architecture(tmp_path, architecture, tied):
    base = make_model(tmp_path / "base", architecture, tied=tied)
    aligned = perturb(base, tmp_path / "aligned")
    vector = extract(base, aligned, tmp_path / "av")
    assert_tensors(vector.folder, rounded(differences(base, aligned), torch.bfloat16))
    vector.check()
    vector.check_base(base)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("base_dtype", DTYPES)
@pytest.mark.parametrize("aligned_dtype", DTYPES)
def test_any_dtype(tmp_path, base_dtype, aligned_dtype, dtype):
    base = make_model(tmp_path / "base", dtype=base_dtype)
    aligned = perturb(base, tmp_path / "aligned", dtype=aligned_dtype)
    vector = extract(base, aligned, tmp_path / "av", dtype=dtype)
    assert_tensors(vector.folder, rounded(differences(base, aligned), getattr(torch, dtype)))


@pytest.mark.parametrize("sharded", [("base",), ("aligned",), ("base", "aligned")])
def test_shards_of_either_model(base, aligned, tmp_path, sharded):
    folders = {"base": base, "aligned": aligned}
    for name in sharded:
        dtype = Checkpoint(folders[name])["model.norm.weight"].dtype
        model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=dtype)
        folders[name] = tmp_path / name
        model.save_pretrained(folders[name], max_shard_size="20KB")
        assert not (folders[name] / SINGLE).exists()
    vector = extract(folders["base"], folders["aligned"], tmp_path / "av")
    assert_tensors(vector.folder, rounded(differences(base, aligned), torch.bfloat16))
    assert vector.metadata.base.fingerprint == fingerprint(Checkpoint(base))


def test_a_large_vector_is_sharded(base, aligned, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_SHARD_SIZE", "20KB")
    vector = extract(base, aligned, tmp_path / "av")
    assert len(list(vector.folder.glob("*.safetensors"))) > 2
    vector.check()
    result = merge(make_recipe(base, {vector.folder: 1}), tmp_path / "out")
    whole = extract(base, aligned, tmp_path / "whole").folder
    expected = merge(make_recipe(base, {whole: 1}), tmp_path / "expected")
    assert all(torch.equal(result[name], expected[name]) for name in expected)


def test_tensors_of_many_blocks(base, aligned, tmp_path, monkeypatch):
    expected = rounded(differences(base, aligned), torch.bfloat16)
    monkeypatch.setattr(checkpoint, "BLOCK", 100)
    folders = [shutil.copytree(source, tmp_path / source.name) for source in (base, aligned)]
    vector = extract(*folders, tmp_path / "av")
    assert_tensors(vector.folder, expected)
    vector.check()
    vector.check_base(folders[0])


@pytest.mark.parametrize("with_head", ["base", "aligned"])
def test_one_side_leaves_the_tied_head_out(base, aligned, tmp_path, with_head):
    folders = {"base": base, "aligned": aligned}
    folder = folders[with_head] = shutil.copytree(folders[with_head], tmp_path / with_head)
    edit_tensors(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    expected = differences(base, aligned)
    if with_head == "base":
        expected[HEAD] = expected[EMBEDDING]
    vector = extract(folders["base"], folders["aligned"], tmp_path / "av")
    assert_tensors(vector.folder, rounded(expected, torch.bfloat16))


def test_a_head_of_its_own_does_not_fit_a_tied_base(base, aligned, tmp_path):
    untied = shutil.copytree(aligned, tmp_path / "aligned")
    edit_tensors(untied, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING] + 1}))
    with pytest.raises(AVError, match=f"no tensor {HEAD}: the aligned model is not of this base"):
        extract(base, untied, tmp_path / "av")


def test_integer_buffers_count_in_the_base_and_have_no_difference(base, aligned, tmp_path):
    folders = [shutil.copytree(f, tmp_path / f.name) for f in (base, aligned)]
    for folder in folders:
        edit_tensors(folder, lambda tensors: tensors.update(buffer=torch.arange(5)))
    vector = extract(*folders, tmp_path / "av")
    assert "buffer" not in vector.delta.names()
    vector.check_base(folders[0])
    with pytest.raises(AVError, match="not of"):
        vector.check_base(base)
    edit_tensors(folders[1], lambda tensors: tensors.update(buffer=torch.ones(5).long()))
    with pytest.raises(AVError, match=r"buffer .* differs"):
        extract(*folders, tmp_path / "other")


@pytest.mark.parametrize("aligned_dtype", [torch.float32, torch.bfloat16])
def test_a_float32_vector_at_1_gives_the_aligned_model_back(tmp_path, base, aligned_dtype):
    aligned = perturb(base, tmp_path / "aligned", dtype=aligned_dtype)
    vector = extract(base, aligned, tmp_path / "av", dtype="float32").folder
    recipe = make_recipe(base, {vector: 1}, dtype="float32", out_dtype="bfloat16")
    recipe["parameters"] = {"rounding": "nearest"}
    result = merge(recipe, tmp_path / "out")
    expected = rounded(load_file(aligned / SINGLE), torch.bfloat16)
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], expected[name]) for name in expected)


def test_the_metadata_say_what_was_measured(base, aligned, tmp_path):
    training = {"beta": 0.1, "log": [{"loss": 1.0}]}
    vector = extract(
        base, aligned, tmp_path / "av", name="medical", levels=["a", "b"], training=training
    )
    metadata, statistics = vector.metadata, vector.metadata.statistics
    assert (metadata.name, metadata.levels, metadata.training) == ("medical", ["a", "b"], training)
    assert metadata.base.id == str(base)
    assert metadata.base.fingerprint == fingerprint(Checkpoint(base))
    assert metadata.fingerprint == fingerprint(Checkpoint(vector.folder))
    assert metadata.precision == {"dtype": "bfloat16", "difference": "of the float32 weights"}
    assert metadata.format_version == 1
    assert metadata.created_with["torch"] == torch.__version__
    assert set(metadata.created_with) == {"mergekit-av", "mergekit", "torch", "transformers", "trl"}

    expected, old = differences(base, aligned), load_file(base / SINGLE)
    norms = {name: torch.linalg.vector_norm(d.double()).item() for name, d in expected.items()}
    for name, found in statistics["tensors"].items():
        assert found["norm"] == pytest.approx(norms[name], rel=1e-4)
        assert found["base_norm"] == pytest.approx(old[name].double().norm().item(), rel=1e-4)
        assert found["unchanged"] == (expected[name] == 0).float().mean().item()
    assert statistics["tensors"].keys() == norms.keys()
    assert statistics["norm"] == pytest.approx(math.hypot(*norms.values()), rel=1e-4)
    assert statistics["weights"] == sum(d.numel() for d in expected.values())

    card = (vector.folder / "README.md").read_text("utf-8")
    for text in ("This is no model", f"base_model: {base}", metadata.base.fingerprint, "| beta |"):
        assert text in card
    assert (vector.folder / "config.json").read_text("utf-8") == (base / "config.json").read_text(
        "utf-8"
    )


def test_a_coarse_difference_says_so(base, tmp_path):
    aligned = perturb(base, tmp_path / "aligned", scale=1e-5, dtype=torch.bfloat16)
    metadata = extract(base, aligned, tmp_path / "av").metadata
    assert (
        "already rounded to bfloat16: changes of less than half a step are lost"
        in (metadata.precision["difference"])
    )
    zeros = torch.cat([d.reshape(-1) == 0 for d in differences(base, aligned).values()])
    assert 0.5 < metadata.statistics["unchanged"] == pytest.approx(zeros.float().mean().item())


@pytest.mark.parametrize(
    ("source", "identity"),
    [("model@v2", ("model@v2", None)), ("plain", ("plain", None))],
)
def test_a_folder_may_have_an_at_sign_in_its_name(base, aligned, tmp_path, source, identity):
    folder = shutil.copytree(base, tmp_path / source)
    found = extract(folder, aligned, tmp_path / "av").metadata.base
    assert (Path(found.id).name, found.revision) == identity
    assert extract(base, aligned, tmp_path / "b", base_id="org/it").metadata.base.id == "org/it"


def test_a_base_in_a_folder_is_not_called_like_a_hub_id(base, aligned, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "models" / "x")
    monkeypatch.chdir(tmp_path)
    assert extract("models/x", aligned, "av").metadata.base.id == "./models/x"
    assert extract("./models/x", aligned, "b").metadata.base.id == "./models/x"


def _nan(folder, tmp_path):
    edit_tensors(folder, lambda tensors: tensors["model.norm.weight"][1:2].fill_(torch.nan))
    return folder


def _infinite(folder, tmp_path):
    edit_tensors(folder, lambda tensors: tensors["model.norm.weight"][1:2].fill_(torch.inf))
    return folder


def _other_shape(folder, tmp_path):
    edit_tensors(
        folder, lambda tensors: tensors.update({EMBEDDING: tensors[EMBEDDING][:-1].clone()})
    )
    return folder


def _renamed(folder, tmp_path):
    edit_tensors(
        folder, lambda tensors: tensors.update(other=tensors.pop("model.norm.weight").clone())
    )
    return folder


def _truncated(folder, tmp_path):
    truncate(folder / SINGLE)
    return folder


def _lost(folder, tmp_path):
    (folder / split(folder)[0]).unlink()
    return folder


def _vector(folder, tmp_path):
    (folder / "alignment_vector.json").write_text("{}", "utf-8")
    return folder


def _without_config(folder, tmp_path):
    (folder / "config.json").unlink()
    return _renamed(folder, tmp_path)


REFUSED = {
    "NaN": (_nan, "model.norm.weight: the difference has NaN or infinite values"),
    "infinity": (_infinite, "model.norm.weight: the difference has NaN or infinite values"),
    "another architecture": (
        lambda folder, tmp_path: make_model(tmp_path / "phi", "phi"),
        "an aligned model keeps the shapes|it is not of this base",
    ),
    "a qwen3": (
        lambda folder, tmp_path: make_model(tmp_path / "qwen3", "qwen3"),
        "not of this base",
    ),
    "another shape": (_other_shape, f"{EMBEDDING} is .* keeps the shapes of its base"),
    "a renamed tensor": (_renamed, "has no tensor model.norm.weight: it is not of this base"),
    "no config to tell ties": (_without_config, "has no config.json"),
    "truncated": (_truncated, "truncated or damaged"),
    "a missing shard": (_lost, "is missing"),
    "a vector": (_vector, "is an alignment vector, not a model"),
    "nowhere": (lambda folder, tmp_path: tmp_path / "no" / "wh" / "ere", "there is no folder"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_models_that_do_not_fit_are_refused_and_leave_nothing(base, aligned, tmp_path, what):
    spoil, message = REFUSED[what]
    model = spoil(shutil.copytree(aligned, tmp_path / "aligned"), tmp_path)
    out = tmp_path / "avs"
    with pytest.raises(AVError, match=message):
        extract(base, model, out / "av")
    code, line = run(av_extract, base, model, out / "av")
    assert code == 1
    assert line.startswith("Error: ")
    assert not out.exists() or not list(out.iterdir())


def test_killed_at_any_step_extraction_leaves_a_whole_vector_or_none(base, aligned, tmp_path):
    code = (
        KILL_AT_EVERY_STEP
        + """
from pathlib import Path
from mergekit_av import AlignmentVector, extract

base, aligned, out = map(Path, sys.argv[1:])
seen = set()
def look():
    seen.add(out.exists())
    if out.exists():
        AlignmentVector.open(out).check()
# Only what happens to the output is of interest.
matters = lambda event, arguments: any(str(out.parent) in str(a) for a in arguments)
kill_at_every_step(lambda: extract(base, aligned, out, overwrite=True), look, matters)
assert seen == {False, True}
"""
    )
    ended = finish(start(python, tmp_path, code, base, aligned, tmp_path / "out" / "av"))
    assert ended.code == 0, ended.err[-3000:]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["av"]


def test_a_full_disk_is_one_line_and_keeps_the_old(base, aligned, tmp_path):
    old = extract(base, aligned, tmp_path / "av", name="old")
    options = ["av-extract", base, aligned, old.folder, "--overwrite"]
    ended = finish(start(command, tmp_path, *options, largest_file=20_000))
    assert ended.code == 1 and ended.error.startswith("Error: could not write")
    AlignmentVector.open(old.folder).check()
    assert AlignmentVector.open(old.folder).metadata.name == "old"


def test_av_extract_writes_what_extract_writes(base, aligned, tmp_path):
    options = ["--name", "medical", "--dtype", "float32", "--levels", "expert, generic,avoidance"]
    code, line = run(av_extract, base, aligned, tmp_path / "av", *options)
    assert (code, line.split(",")[0].split()[0]) == (0, "norm")
    vector = AlignmentVector.open(tmp_path / "av")
    assert vector.metadata.levels == ["expert", "generic", "avoidance"]
    assert vector.metadata.name == "medical"
    assert_tensors(vector.folder, differences(base, aligned))
    code, line = run(av_extract, base, aligned, tmp_path / "av")
    assert (code, "pass --overwrite" in line) == (1, True)
    code, _ = run(av_extract, base, aligned, tmp_path / "av", "--overwrite")
    assert (code, AlignmentVector.open(tmp_path / "av").metadata.name) == (0, "av")


def test_a_folder_that_is_no_vector_is_not_overwritten(base, aligned, tmp_path):
    model = shutil.copytree(aligned, tmp_path / "model")
    code, line = run(av_extract, base, aligned, model, "--overwrite")
    assert (code, "replaces only what we wrote" in line) == (1, True)
    assert (model / SINGLE).exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing argument 'BASE'"),
        (["a", "b"], "Missing argument 'OUT'"),
        (["a", "b", "c", "d"], "unexpected extra argument (d)"),
        (["a", "b", "c", "--dtype", "int8"], "Invalid value for '--dtype': 'int8'"),
        (["a", "b", "c", "--nam", "x"], "--nam"),
        (["a", "b", "c", "--name"], "'--name' requires an argument"),
    ],
)
def test_usage_errors_are_one_line_and_exit_with_2(arguments, says):
    result = CliRunner().invoke(av_extract, arguments)
    assert result.exit_code == 2 and not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and says in line


def test_av_check_accepts_a_sound_vector(base, vectors):
    for options in ([], ["--base", base]):
        code, line = run(av_check, vectors["legal"], *options)
        assert (code, line.split()[0]) == (0, "norm")


@pytest.mark.parametrize("damage", DAMAGES)
def test_av_check_says_what_is_wrong(vectors, tmp_path, damage):
    harm, message = DAMAGES[damage]
    folder = shutil.copytree(vectors["legal"], tmp_path / "av")
    harm(folder)
    result = CliRunner().invoke(av_check, [str(folder)])
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ")
    assert re.search(message, line)


def test_av_check_refuses_another_base(vectors, tmp_path):
    other = make_model(tmp_path / "other", seed=5)
    code, line = run(av_check, vectors["legal"], "--base", other)
    assert (code, "pass the base it was made for" in line) == (1, True)
    code, line = run(av_check, vectors["legal"], "--base", make_model(tmp_path / "phi", "phi"))
    assert (code, "does not fit" in line) == (1, True)


def test_av_check_is_an_installed_command(vectors, tmp_path):
    folder = shutil.copytree(vectors["legal"], tmp_path / "av")
    flip_bit(folder / SINGLE, -1)
    ended = finish(start(command, tmp_path, "av-check", folder))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("Error: ")
    assert ended.err.count("\n") == 1


# What is at the output's place


def extract_meddled(*arguments: str) -> None:
    meddle(r"/README\.md$", lambda: put_thesis(Path("av")))
    av_extract(list(arguments))


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_folder_that_came_meanwhile_stays_and_the_vector_is_kept(base, aligned, tmp_path, more):
    ended = finish(start(extract_meddled, tmp_path, str(base), str(aligned), "av", *more))
    kept = tmp_path / "av.new"
    assert ended.code == 1 and ended.out == ""
    assert ended.error.startswith(f"Error: {tmp_path / 'av'} ")
    assert ended.error.endswith(f". What was to go there is whole, and is kept in {kept}")
    assert [path.name for path in (tmp_path / "av").iterdir()] == ["thesis.tex"]
    assert AlignmentVector.open(kept).metadata.name == "av"
    AlignmentVector.open(kept).check()
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".log"))
    assert left == ["av", "av.new"]


def test_overwriting_keeps_the_owners_words_and_nothing_that_is_not_of_the_vector(
    base, aligned, tmp_path
):
    arguments = [base, aligned, tmp_path / "av"]
    assert run(av_extract, *arguments)[0] == 0
    card = tmp_path / "av/README.md"
    text = card.read_text("utf-8").replace("---\n", "---\nlicense: cc-by-4.0\n", 1)
    card.write_text(text.replace(BEGIN, f"{BEGIN}\nAsk Ada."), "utf-8")
    assert END in text
    assert run(av_extract, *arguments, "--overwrite", "--name", "other")[0] == 0
    assert Kept.of(card.read_text("utf-8")) == Kept({"license": "cc-by-4.0"}, "Ask Ada.")
    assert AlignmentVector.open(tmp_path / "av").metadata.name == "other"

    (tmp_path / "av/sweep.png").touch()  # of av-sweep --write-card: about the old one
    assert run(av_extract, *arguments, "--overwrite")[0] == 0
    assert not (tmp_path / "av/sweep.png").exists()
    (tmp_path / "av/notes").mkdir()
    (tmp_path / "av/notes/mine.txt").write_text("mine", "utf-8")
    code, line = run(av_extract, *arguments, "--overwrite", "--name", "third")
    assert code == 1 and "av holds notes, which is not of an alignment vector" in line
    assert (tmp_path / "av/notes/mine.txt").read_text("utf-8") == "mine"
    assert AlignmentVector.open(tmp_path / "av").metadata.name == "av"
