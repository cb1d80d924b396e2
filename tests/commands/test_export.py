"""av-export as a user meets it: what it prints, what it writes, how it fails."""

import json
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from damage import DAMAGES, edit_json, truncate
from meddling import meddle, put_thesis
from processes import finish, start
from tiny import make_model

from mergekit_av import AlignmentVector, export_lora
from mergekit_av.cli.export import av_export
from mergekit_av.cli.push import av_push
from mergekit_av.export.peft import CONFIG, WEIGHTS
from mergekit_av.text.card import BEGIN, Kept


def run(*arguments: object) -> Result:
    return CliRunner().invoke(av_export, [str(argument) for argument in arguments])


def refused(*arguments: object, code: int = 1) -> str:
    """The one line on stderr with which the command ends; it prints nothing else."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit) and result.stdout == ""
    *before, last = result.stderr.splitlines()
    assert last.startswith("Error: ") and all("layer/s]" in line for line in before)
    return last


@pytest.fixture
def copied(vectors, tmp_path) -> Path:
    """A vector to spoil."""
    return shutil.copytree(vectors["legal"], tmp_path / "av")


def test_the_table_says_what_is_lost(vectors, tmp_path):
    out, file = tmp_path / "lora", tmp_path / "loss.json"
    # As the issue of it spells it: options first.
    result = run("--lora", "--rank", 8, vectors["legal"], "--out", out, "--json", file)
    assert result.exit_code == 0, result.output
    first, _, *rows, last = result.stdout.splitlines()
    size = (out / WEIGHTS).stat().st_size
    assert first == f"{out}: LoRA adapter of rank 8, λ 1, {size / 1e6:.1f} MB in bfloat16"
    assert "Writing lora: 100%" in result.stderr

    found = json.loads(file.read_text("utf-8"))
    assert (found["folder"], found["rank"], found["nbytes"]) == (str(out), 8, size)
    assert [row.split()[0] for row in rows] == [part["kind"] for part in found["parts"]]
    for row, part in zip(rows, found["parts"], strict=True):
        assert row.split()[1:] == [
            str(part["tensors"]), f"{part['share']:.2%}", f"{part['kept']:.1%}"
        ]  # fmt: skip
    assert found["kept"] == pytest.approx(sum(p["share"] * p["kept"] for p in found["parts"]))
    assert found["kept"] == pytest.approx(found["kept_at"]["8"])
    assert f"kept in all {found['kept']:.1%}" in last
    # The vector moves every weight by as much: shares are those of the weights.
    parts = {part["kind"]: part for part in found["parts"]}
    weights = AlignmentVector.open(vectors["legal"]).metadata.statistics["weights"]
    assert parts["embeddings"]["share"] == pytest.approx(600 * 32 / weights, rel=0.05)


def test_options_reach_the_adapter(vectors, tmp_path):
    out = tmp_path / "lora"
    options = ["--lambda", -1.5, "--dtype", "float32", "--base", "me/base", "--device", "cpu"]
    assert run(vectors["legal"], "--lora", "--rank", 4, "--out", out, *options).exit_code == 0
    config, card = (
        json.loads((out / CONFIG).read_text("utf-8")),
        (out / "README.md").read_text("utf-8"),
    )
    assert (config["lora_alpha"], config["base_model_name_or_path"]) == (-6, "me/base")
    assert re.search("^base_model: me/base$", card, re.MULTILINE)
    assert re.search("^library_name: peft$", card, re.MULTILINE)
    assert 'from_pretrained("me/base")' in card and "λ = -1.5" in card
    with open(out / WEIGHTS, "rb") as file:
        assert b'"dtype":"F32"' in file.read(400)


def test_a_base_at_a_revision_stays_there(copied, tmp_path):
    def edit(metadata: dict) -> None:
        metadata["base"] |= {"id": "me/base", "revision": "a" * 40}

    edit_json(copied / "alignment_vector.json", edit)
    assert run(copied, "--lora", "--rank", 4, "--out", tmp_path / "lora").exit_code == 0
    config = json.loads((tmp_path / "lora" / CONFIG).read_text("utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/base", "a" * 40)
    card = (tmp_path / "lora" / "README.md").read_text("utf-8")
    assert f'from_pretrained("me/base", revision="{"a" * 40}")' in card
    assert f"vllm serve me/base --revision {'a' * 40}" in card


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["av", "--rank", "4", "--out", "o"], "Missing option '--lora'"),
        (["av", "--lora", "--rank", "4"], "Missing option '--out'"),
        (["--lora", "--rank", "4", "--out", "o"], "Missing argument 'AV'"),
        (["av", "--lora", "--rank", "0", "--out", "o"], "0 is not in the range x>=1"),
        (["av", "--lora", "--rank", "8.5", "--out", "o"], "'8.5' is not a valid integer"),
        (["av", "--lora", "--rank", "4", "--lambda", "one", "--out", "o"], "'one' is not"),
    ],
)
def test_usage_errors_are_one_line_and_exit_with_2(arguments, says):
    assert says in refused(*arguments, code=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rank", 33], "rank 33 is impossible: .* ranks of 1 to 32"),
        (["--rank", 4, "--lambda", "0"], "finite and not 0"),
        (["--rank", 4, "--lambda", "nan"], "finite and not 0, .* not nan"),
        (["--rank", 4, "--lambda", "-inf"], "finite and not 0"),
        (["--rank", 4, "--device", "abacus"], "cannot use the device 'abacus'"),
    ],
)
def test_what_cannot_be_is_refused(vectors, tmp_path, options, says):
    line = refused(vectors["legal"], "--lora", "--out", tmp_path / "lora", *options)
    assert re.search(says, line)
    assert not list(tmp_path.iterdir())


def test_what_is_no_vector_is_refused(base, tmp_path):
    for source, says in (
        (base, "looks like a whole model"),
        (tmp_path, "no alignment vector"),
        (tmp_path / "no/wh/ere", "there is no folder"),
    ):
        assert says in refused(source, "--lora", "--rank", 4, "--out", tmp_path / "lora")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "NaN", "only pickles"])
def test_a_damaged_vector_is_refused(copied, tmp_path, damage):
    harm, says = DAMAGES[damage]
    harm(copied)
    assert re.search(says, refused(copied, "--lora", "--rank", 4, "--out", tmp_path / "lora"))
    assert list(tmp_path.iterdir()) == [copied]


def _unknown(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(model_type="abacus"))


def _other(folder: Path) -> None:
    other = make_model(folder.parent / "other", "qwen3")
    shutil.move(other / "config.json", folder / "config.json")
    shutil.rmtree(other)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: truncate(folder / "config.json"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (_unknown, "is no causal LM"),
        (_other, "does not fit the model: .* is missing in the vector"),
    ],
)
def test_a_base_that_cannot_be_made_of_its_config_is_refused(copied, tmp_path, harm, says):
    harm(copied)
    assert re.search(says, refused(copied, "--lora", "--rank", 4, "--out", tmp_path / "lora"))
    assert list(tmp_path.iterdir()) == [copied]


def test_what_is_in_the_way_stays(vectors, tmp_path):
    arguments = [vectors["legal"], "--lora", "--rank", 4, "--out", tmp_path / "lora"]
    assert run(*arguments, "--lambda", 2).exit_code == 0
    assert "pass --overwrite" in refused(*arguments)
    assert json.loads((tmp_path / "lora" / CONFIG).read_text("utf-8"))["lora_alpha"] == 8
    assert run(*arguments, "--overwrite").exit_code == 0
    assert json.loads((tmp_path / "lora" / CONFIG).read_text("utf-8"))["lora_alpha"] == 4

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work", "utf-8")
    line = refused(*arguments[:-1], foreign, "--overwrite")
    assert "--overwrite replaces only what we wrote" in line
    assert [file.name for file in foreign.iterdir()] == ["thesis.txt"]


def test_an_adapter_that_somebody_trained_stays(vectors, tmp_path):
    """PEFT writes the same files."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AlignmentVector.open(vectors["legal"]).metadata.base.id
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2))
    model.save_pretrained(tmp_path / "lora")
    (tmp_path / "lora/checkpoint-5").mkdir()
    (tmp_path / "lora/checkpoint-5/optimizer.pt").write_text("hours", "utf-8")
    files = sorted(tmp_path.rglob("*"))
    line = refused(
        vectors["legal"], "--lora", "--rank", 4, "--out", tmp_path / "lora", "--overwrite"
    )
    assert "lora is not an adapter of av-export: --overwrite replaces only what we wrote" in line
    shutil.rmtree(tmp_path / "lora/checkpoint-5")
    assert line == refused(
        vectors["legal"], "--lora", "--rank", 4, "--out", tmp_path / "lora", "--overwrite"
    )
    assert sorted(tmp_path.rglob("*")) == [file for file in files if "checkpoint" not in str(file)]


def test_overwriting_keeps_the_owners_words_and_nothing_that_is_not_of_the_adapter(
    vectors, tmp_path
):
    arguments = [vectors["legal"], "--lora", "--rank", 4, "--out", tmp_path / "lora"]
    assert run(*arguments).exit_code == 0
    card = tmp_path / "lora/README.md"
    text = card.read_text("utf-8").replace("---\n", "---\nlicense: cc-by-4.0\n", 1)
    card.write_text(text.replace(BEGIN, f"{BEGIN}\nAsk Ada."), "utf-8")
    assert run(*arguments, "--overwrite", "--lambda", 2).exit_code == 0
    assert Kept.of(card.read_text("utf-8")) == Kept({"license": "cc-by-4.0"}, "Ask Ada.")
    (tmp_path / "lora/av.gguf").write_text("converted", "utf-8")
    line = refused(*arguments, "--overwrite")
    assert "lora holds av.gguf, which is not of an adapter of av-export" in line
    assert json.loads((tmp_path / "lora" / CONFIG).read_text("utf-8"))["lora_alpha"] == 8


def export(*arguments: str) -> None:
    av_export(list(arguments))


def export_meddled(*arguments: str) -> None:
    meddle(r"/README\.md$", lambda: put_thesis(Path("lora")))
    av_export(list(arguments))


def test_a_folder_that_came_meanwhile_stays_and_the_adapter_is_kept(vectors, tmp_path):
    arguments = [str(vectors["legal"]), "--lora", "--rank", "4", "--out", "lora", "--json", "j"]
    ended = finish(start(export_meddled, tmp_path, *arguments))
    assert ended.code == 1 and ended.out == ""
    assert ended.error.endswith(f"is whole, and is kept in {tmp_path / 'lora.new'}")
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["thesis.tex"]
    assert json.loads((tmp_path / "lora.new" / CONFIG).read_text("utf-8"))["r"] == 4
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize("kind", ["a pipe", "a link to a pipe", "standard output"])
def test_the_table_goes_to_what_is_no_file(vectors, tmp_path, kind):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    to = {"a pipe": pipe, "a link to a pipe": tmp_path / "link"}.get(kind, "/dev/stdout")
    arguments = [str(vectors["legal"]), "--lora", "--rank", "4", "--out", "lora", "--json", str(to)]
    process = start(export, tmp_path, *arguments)
    text = "" if kind == "standard output" else pipe.read_text("utf-8")
    ended = finish(process)
    assert ended.code == 0, ended.err
    text = text or ended.out[ended.out.index("{") :]
    assert json.loads(text)["rank"] == 4 and "LoRA adapter of rank 4" in ended.out
    assert stat.S_ISFIFO(pipe.stat().st_mode) and (tmp_path / "link").is_symlink()


def test_a_place_where_no_table_can_be_is_said_before_the_work(vectors, tmp_path):
    arguments = [vectors["legal"], "--lora", "--rank", 4, "--out", tmp_path / "lora"]
    assert "is a folder: name a file" in refused(*arguments, "--json", tmp_path)
    assert not list(tmp_path.iterdir())


def test_av_push_says_how_to_push_an_adapter(vectors, tmp_path):
    export_lora(AlignmentVector.open(vectors["legal"]), tmp_path / "lora", 2)
    result = CliRunner().invoke(av_push, [str(tmp_path / "lora"), "me/lora", "--dry-run"])
    assert result.exit_code == 1
    assert f"hf upload me/lora {tmp_path / 'lora'}" in result.stderr


def export_again(folder: str, out: str) -> int:
    return av_export([folder, "--lora", "--rank", "8", "--out", out, "--overwrite"])


def test_a_full_disk_is_one_line_and_keeps_the_old(vectors, tmp_path):
    export_lora(AlignmentVector.open(vectors["legal"]), tmp_path / "lora", 2)
    before = (tmp_path / "lora" / WEIGHTS).read_bytes()
    arguments = (export_again, tmp_path, str(vectors["legal"]), "lora")
    ended = finish(start(*arguments, largest_file=10_000))
    assert ended.code == 1 and ended.error.startswith("Error: could not write")
    assert (tmp_path / "lora" / WEIGHTS).read_bytes() == before
    assert [f.name for f in tmp_path.iterdir() if not f.name.startswith(".log")] == ["lora"]
