"""av-eval as a user meets it: what it prints where, what it writes, how it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from tiny import make_model, make_tokenizer

from mergekit_av.cli.eval import av_eval
from mergekit_av.data.domain import load_domain
from mergekit_av.data.records import load_records
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.models.scoring import mean_log_probs

COMMAND = Path(sys.executable).with_name("av-eval")


def run(*arguments) -> Result:
    return CliRunner().invoke(av_eval, [str(argument) for argument in arguments])


def refused(*arguments, code: int = 1) -> str:
    """The one line on stderr with which the command ends; it prints and writes nothing else."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit) and result.stdout == ""
    *before, last = result.stderr.splitlines()
    assert last.startswith("Error: ")
    assert all(line == "" or "it/s]" in line for line in before)  # the bar of loading
    return last


def row(id: str, split: str = "test", expert: str = "Take 5 mg.") -> dict:
    responses = {"expert": expert, "generic": "See a doctor.", "avoidance": "I can't say."}
    return {"id": id, "split": split, "query": f"What now, {id}?", "responses": responses}


@pytest.fixture
def few(write_jsonl) -> list:
    """Options that score three records of the medical domain."""
    return ["--domain", "medical", "--data", write_jsonl([row("a"), row("b"), row("c")])]


@pytest.fixture
def copy(base, tmp_path) -> Path:
    """A copy of the base to spoil."""
    return Path(shutil.copytree(base, tmp_path / "copy"))


def test_by_default_all_domains_with_built_in_records_are_scored(base, tmp_path):
    result = run(base, "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    names = ["financial", "helpfulness", "legal", "medical"]
    lines = result.stdout.splitlines()
    assert lines[0] == f"{base} (float32 on cpu), test records"
    assert [line.split()[0] for line in lines if "(" in line][1:] == names
    # Bars on stderr, and the table alone on stdout: 3 + 2 + 3 + 3 levels and two lines above.
    assert len(lines) == 13
    assert all(f"Scoring {name}: 100%" in result.stderr for name in names)
    assert "Scoring" not in result.stdout

    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["model"] == str(base) and report["fingerprint"] == fingerprint(Checkpoint(base))
    assert (report["dtype"], report["device"]) == ("float32", "cpu")
    assert report["versions"]["torch"] == torch.__version__
    assert [entry["domain"] for entry in report["domains"]] == names

    # Every number again from the parts.
    records = [r for r in load_records(load_domain("legal")) if r.split == "test"]
    scores = mean_log_probs(load_model(base), load_tokenizer(base), records)
    legal = report["domains"][2]
    assert [list(s.values()) for s in legal["scores"].values()] == scores.tolist()
    assert legal["records"] == len(records) == len(legal["scores"])
    shares = [share["value"] for share in legal["accuracy"].values()]
    assert sum(shares) == pytest.approx(1)
    wins = scores.argmax(dim=1).bincount(minlength=3) / len(records)
    assert shares == pytest.approx(wins.tolist())


def test_the_report_goes_to_what_is_no_file(base, tmp_path, few):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = processes.start(processes.command, tmp_path, "av-eval", base, *few, "--json", pipe)
    report = json.loads(pipe.read_text("utf-8"))
    ended = processes.finish(process)
    assert ended.code == 0, ended.err
    assert list(report["domains"][0]["scores"]) == ["a", "b", "c"] and "medical (3)" in ended.out
    assert pipe.is_fifo()
    assert {process.log.stem} == {entry.stem for entry in tmp_path.glob(".*")}


def test_the_installed_command_keeps_its_streams_apart(base, tmp_path, few):
    done = subprocess.run(
        [COMMAND, base, *few, "--json", "report.json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and lines[2].startswith("medical (3)") and "Scoring" not in done.stdout
    assert "Scoring medical: 100%" in done.stderr and "Traceback" not in done.stderr
    assert [entry.name for entry in tmp_path.glob("*report*")] == ["report.json"]
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert list(report["domains"][0]["scores"]) == ["a", "b", "c"]


def test_several_domains_built_in_and_ones_own(base, tmp_path, write_jsonl):
    rows = [{"prompt": f"Hello {i}", "chosen": "Dear!", "rejected": "What."} for i in range(4)]
    write_jsonl(rows, "tone.jsonl")
    own = tmp_path / "tone.yml"
    own.write_text("name: tone\nlevels: [warm, cold]\nrecords: tone.jsonl\nsplit: test\n", "utf-8")
    result = run(base, "--domain", own, "--domain", "helpfulness")
    assert result.exit_code == 0, result.output
    firsts = [line.split()[0] for line in result.stdout.splitlines()]
    assert firsts[2:] == ["tone", "cold", "helpfulness", "unhelpful"]


def test_the_split_is_the_one_asked_for(base, write_jsonl, tmp_path):
    data = write_jsonl([row("a"), row("b", "train"), row("c", "validation"), row("d", "train")])
    for split, ids in [("train", ["b", "d"]), ("validation", ["c"]), ("test", ["a"])]:
        out = tmp_path / "report.json"
        result = run(
            base, "--domain", "medical", "--data", data, "--split", split, "--json", out
        )  # fmt: skip
        assert f"{split} records" in result.stdout.splitlines()[0]
        assert list(json.loads(out.read_text("utf-8"))["domains"][0]["scores"]) == ids


def test_domains_that_have_no_such_split_are_not_among_the_default_ones(base):
    result = run(base, "--split", "validation")
    assert result.exit_code == 0, result.output
    assert "medical" in result.stdout and "helpfulness" not in result.stdout


def test_answers_of_so_many_records_are_shown_and_written(copy, few, tmp_path):
    # Larger weights, so that what it says depends on every token before.
    rewritten(lambda tensors: {k: v * 8 if v.dim() == 2 else v for k, v in tensors.items()})(copy)
    out = tmp_path / "report.json"
    result = run(copy, *few, "--answers", 2, "--max-new-tokens", 80, "--json", out)
    assert result.exit_code == 0, result.output
    answers = json.loads(out.read_text("utf-8"))["answers"]["medical"]
    assert list(answers) == ["a", "b"]
    assert [line for line in result.stdout.splitlines() if line.startswith("medical, ")]
    model, tokenizer = load_model(copy), load_tokenizer(copy)
    prompt = "<|user|>What now, b?<|end|>\n<|assistant|>"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    for _ in range(80):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == tokenizer.eos_token_id:
            break
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert answers["b"] == text.removeprefix("What now, b?\n").strip()
    assert f"\nmedical, b: {answers['b']}" in result.stdout


def test_a_tokenizer_that_tells_segments_apart_gives_answers_too(copy, few):
    config = json.loads((copy / "tokenizer_config.json").read_text("utf-8"))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    (copy / "tokenizer_config.json").write_text(
        json.dumps({**config, "model_input_names": names}), "utf-8"
    )
    assert "token_type_ids" in load_tokenizer(copy)("Hi")
    result = run(copy, *few, "--answers", 1)
    assert result.exit_code == 0, result.output


def test_a_base_without_a_chat_template_works_and_the_plain_format_is_stated(tmp_path, few):
    model = make_model(tmp_path / "model")
    make_tokenizer(model, None)
    result = run(model, *few)
    assert result.exit_code == 0, result.output
    notice = f"{model}: no chat template: prompts are written as 'User: …'"
    assert notice in result.stderr and notice not in result.stdout
    assert "medical (3)" in result.stdout


def test_records_longer_than_the_context_are_counted_and_reported(tmp_path, write_jsonl):
    model = make_model(tmp_path / "model", context=120)
    make_tokenizer(model)
    data = write_jsonl(
        [row("long", expert="word " * 200), row("a"), row("longer", expert="w" * 999)]
    )
    out = tmp_path / "report.json"
    result = run(
        model, "--domain", "medical", "--data", data, "--answers", 3, "--json", out
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "medical: 2 records left out, longer than the context" in result.stdout
    report = json.loads(out.read_text("utf-8"))
    assert report["domains"][0]["too_long"] == ["long", "longer"]
    assert list(report["answers"]["medical"]) == ["a"]
    only = write_jsonl([row("long", expert="word " * 200)], "only.jsonl")
    message = refused(model, "--domain", "medical", "--data", only)
    assert message == "Error: medical: none of the 1 records fits the context of 120 tokens"


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_the_dtype_it_computed_in_is_reported(base, few, dtype):
    assert f"{base} (bfloat16 on cpu)" in run(base, *few, "--dtype", dtype).stdout


# Failures


def test_wrong_usage_ends_with_2(base, few, tmp_path):
    assert "--data goes with exactly one --domain" in refused(base, "--data", few[3], code=2)
    twice = ["--domain", "medical", "--domain", "medical"]
    assert "two of the domains have the same name" in refused(base, *twice, code=2)
    assert "No such option" in refused(base, "--domian", "medical", code=2)
    assert "Invalid value for '--split'" in refused(base, "--split", "dev", code=2)
    assert "Invalid value for '--answers'" in refused(base, "--answers", "-1", code=2)
    assert "Invalid value for '--json'" in refused(base, *few, "--json", tmp_path, code=2)


def test_help_shows_every_default(base):
    result = run("--help")
    assert result.exit_code == 0
    assert result.stdout.count("default:") == 15


def test_an_alignment_vector_is_refused_as_a_model(vectors, few):
    message = refused(vectors["medical"], *few)
    assert message.endswith("is an alignment vector, not a model: merge it with its base first")


def test_a_hub_id_out_of_reach_is_one_line(few):
    message = refused("owner/model", *few)
    assert message.startswith("Error: owner/model is no folder here, and the Hub has not given it:")
    assert refused("./models/gone", *few) == "Error: there is no folder ./models/gone"


def edited(**changes):
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, **changes}), "utf-8")

    return edit


def with_norm(tensors: dict, value: float) -> dict:
    return {**tensors, "model.norm.weight": torch.full_like(tensors["model.norm.weight"], value)}


def rewritten(change):
    def rewrite(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return rewrite


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


SPOILT = {
    "no weights": (remove("model.safetensors"), "holds no model.safetensors"),
    "truncated weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 20_000), "is truncated or damaged"
    ),
    "only pickles": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "has only pickle files",
    ),
    "a tensor is missing": (
        rewritten(lambda tensors: {k: v for k, v in tensors.items() if k != "model.norm.weight"}),
        "has no tensor model.norm.weight, which its config.json asks for",
    ),
    "NaN": (
        rewritten(lambda tensors: with_norm(tensors, float("nan"))),
        "record a: the model's log-probabilities are NaN or infinite",
    ),
    "no config": (remove("config.json"), "has no config.json"),
    "a config that is no JSON": (
        lambda folder: (folder / "config.json").write_text("{", "utf-8"), "config.json cannot be read:"
    ),
    "unknown architecture": (edited(model_type="nothing"), "is no causal LM that transformers"),
    "no causal LM": (edited(model_type="clip"), "is no causal LM that transformers"),
    "a size that is a word": (edited(hidden_size="x"), "is no causal LM that transformers"),
    "another size": (edited(vocab_size=601), "is no causal LM that transformers"),
    "an unknown activation": (edited(hidden_act="x"), "is no causal LM that transformers"),
    "code of its own": (
        edited(model_type="nothing", auto_map={"AutoConfig": "x.X"}), "names code of its own"
    ),
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"), "has no tokenizer that loads"
    ),
    "a broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}", "utf-8"), "has no tokenizer that loads"
    ),
    "a larger tokenizer": (
        lambda folder: (
            rewritten(
                lambda tensors: {k: v[:300] if "embed" in k else v for k, v in tensors.items()}
            )(folder),
            edited(vocab_size=300)(folder),
        ),
        "a token beyond the model's 300: other tokenizer?",
    ),
    "a template that refuses": (
        lambda folder: (folder / "chat_template.jinja").write_text("{{ raise_exception('No.') }}", "utf-8"),
        "the chat template refuses a conversation of user: No.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "says"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_model_is_one_line(copy, few, spoil, says, tmp_path):
    spoil(copy)
    result = run(copy, *few, "--json", tmp_path / "report.json")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.exception
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and says in last
    assert result.stdout == "" and not list(tmp_path.glob("*report*"))


def test_a_device_that_is_not_there_is_one_line(base, few):
    for device in ("nowhere", "cpu:x"):
        message = refused(base, *few, "--device", device)
        assert f"cannot use the device '{device}'" in message


def test_bad_records_are_found_before_the_model_is_read(tmp_path, write_jsonl):
    data = write_jsonl([row("a"), row("a")])
    message = refused(tmp_path / "no-model", "--domain", "medical", "--data", data)
    assert "line 2: the id 'a' stands already" in message
    data = write_jsonl([row("a", "train")])
    message = refused(tmp_path / "no-model", "--domain", "medical", "--data", data)
    assert "medical: none of the 1 records is in the test split" in message
    assert "no domain 'dental'" in refused(tmp_path / "no-model", "--domain", "dental")


def test_a_full_disk_leaves_the_old_report_whole(base, few, tmp_path):
    (tmp_path / "report.json").write_text("old", "utf-8")
    options = [base, *few, "--json", "report.json"]
    # There is room for what it says, which goes to files here as well.
    process = processes.start(
        processes.command, tmp_path, "av-eval", *options, largest_file=1500
    )  # fmt: skip
    ended = processes.finish(process)
    assert ended.code == 1 and ended.error.startswith("Error: could not write")
    assert "medical (3)" in ended.out  # the result itself is not lost
    assert (tmp_path / "report.json").read_text("utf-8") == "old"
    assert [entry.name for entry in tmp_path.glob("*report*")] == ["report.json"]


def test_killed_while_scoring_it_leaves_the_old_report_whole(base, tmp_path):
    (tmp_path / "report.json").write_text("old", "utf-8")
    process = processes.start(
        processes.command, tmp_path, "av-eval", base, "--json", "report.json"
    )  # fmt: skip
    while not process.log.with_suffix(".err").exists() or "Scoring" not in (
        err := processes.read(process, "err")
    ):
        assert process.is_alive(), err
        time.sleep(0.005)
    process.kill()
    assert processes.finish(process).code == -signal.SIGKILL
    assert (tmp_path / "report.json").read_text("utf-8") == "old"
