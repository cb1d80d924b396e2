"""The folder of a run: one training at a time has it, and only what a run wrote is ever removed."""

import json
import os
import signal
from pathlib import Path

import pytest
from synthesizing import TINY, novelist, synth, write_personas
from synthesizing import write_domain as write_hosting
from training_runs import av_train, contents, finish, hold, kill, training, write_domain

from mergekit_av.text.card import BEGIN, END, Kept

BASE = r"read .*/model\.safetensors"
TOKENIZATION = r"rename runs/tone/data/train/tmp"
CHECKPOINT = r"write runs/tone/checkpoint-4/trainer_state.json"
WORDS = "Measured at our desk; ask Ada."


@pytest.fixture
def command(tmp_path, base):
    """The options of a run in `tmp_path`, on a domain that is written there."""
    write_domain(tmp_path)
    return ["--domain", "tone.yml", "--base", base]


@pytest.fixture(scope="module")
def vector(tmp_path_factory, base) -> dict[str, bytes]:
    """The files of the vector that a run makes when nothing happens to it."""
    folder = tmp_path_factory.mktemp("whole")
    domain = write_domain(folder)
    assert av_train(folder, "--domain", domain, "--base", base).code == 0
    return contents(folder / "avs/tone")


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        # Locks that a killed process left lock nothing, and are removed by the next.
        if path.is_file() and not path.name.startswith(".")
    }


def refused(folder: Path, *options: object) -> str:
    """The line with which av-train ends, having changed nothing."""
    before = everything(folder)
    ended = av_train(folder, *options)
    assert ended.code == 1 and ended.error.startswith("Error: "), ended.err
    assert everything(folder) == before
    return ended.error


# One at a time


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(BASE, id="the base is loaded"),
        pytest.param(TOKENIZATION, id="it has begun"),
    ],
)
def test_a_second_training_of_a_domain_is_refused_and_the_first_not_disturbed(
    moment, tmp_path, command, vector
):
    first = hold(tmp_path, *command, at=moment)
    assert (tmp_path / "runs/tone/settings.json").exists() == (moment == TOKENIZATION)
    other = [*command, "--learning_rate", "1e-3", "--out", "avs/other"]
    for options in (other, [*other, "--overwrite"], [*other, "--resume"]):
        line = av_train(tmp_path, *options).error
        assert line == (
            "Error: runs/tone is in use by another process: wait for it, or choose another place "
            "for the run with --output_dir"
        )
    os.kill(first.pid, signal.SIGCONT)
    assert finish(first).code == 0
    assert contents(tmp_path / "avs/tone") == vector
    assert [path.name for path in (tmp_path / "avs").iterdir()] == ["tone"]
    assert not any((tmp_path / "runs").iterdir())


def test_two_trainings_do_not_write_to_one_vector(tmp_path, command, vector):
    first = hold(tmp_path, *command, at=TOKENIZATION)
    ended = av_train(tmp_path, *command, "--output_dir", "runs/other")
    assert ended.error == (
        "Error: avs/tone is in use by another process: wait for it, or choose another folder with "
        "--out"
    )
    side = [*command, "--output_dir", "runs/other", "--out", "avs/other"]
    assert av_train(tmp_path, *side).code == 0  # side by side, they do not meet
    os.kill(first.pid, signal.SIGCONT)
    assert finish(first).code == 0
    assert contents(tmp_path / "avs/tone") == vector
    assert training(tmp_path / "avs/other") | {"seconds": 0} == training(tmp_path / "avs/tone") | {
        "seconds": 0
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_says_so_and_is_resumed(number, tmp_path, command, vector):
    process = hold(tmp_path, *command, at=CHECKPOINT)
    os.kill(process.pid, number)
    ended = finish(process)
    assert ended.code == 128 + number and ended.error == "Interrupted", ended.err
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tone"]
    assert av_train(tmp_path, *command, "--resume").code == 0
    assert contents(tmp_path / "avs/tone") == vector


# What comes to the vector's place meanwhile


def test_a_folder_that_came_to_the_place_of_the_vector_stays(tmp_path, command, vector):
    process = hold(tmp_path, *command, at=TOKENIZATION)
    (tmp_path / "avs/tone").mkdir()
    (tmp_path / "avs/tone/thesis.tex").write_text("years of work", "utf-8")
    os.kill(process.pid, signal.SIGCONT)
    ended = finish(process)
    assert ended.code == 1
    assert ended.error == (
        f"Error: {tmp_path / 'avs/tone'} exists: choose another folder or pass --overwrite. The "
        "trained model is kept in runs/tone/aligned: --resume goes on from there"
    )
    line = refused(tmp_path, *command, "--resume", "--overwrite")
    assert "--overwrite replaces only what we wrote" in line
    assert (tmp_path / "avs/tone/thesis.tex").read_text("utf-8") == "years of work"
    ended = av_train(tmp_path, *command, "--resume", "--out", "avs/elsewhere")
    assert ended.code == 0 and "Training" not in ended.err
    assert contents(tmp_path / "avs/elsewhere") == vector


# What is not of the run


def test_what_somebody_put_into_a_run_stays(tmp_path, command, vector):
    kill(tmp_path, *command, at=CHECKPOINT)
    run = tmp_path / "runs/tone"
    (run / "notes.txt").write_text("mine", "utf-8")
    (run / "logs").mkdir()
    (run / "logs/notes.txt").write_text("mine, too", "utf-8")
    ended = av_train(tmp_path, *command, "--resume")
    assert ended.code == 0 and contents(tmp_path / "avs/tone") == vector
    assert "runs/tone is kept, for it holds what is not of the run: logs, notes.txt" in ended.err
    mine = {"notes.txt": b"mine", "logs/notes.txt": b"mine, too"}
    assert everything(run) == mine
    again = [*command, "--out", "avs/again"]
    for options in ([], ["--overwrite"], ["--resume"]):
        line = refused(tmp_path, *again, *options)
        assert "runs/tone is where the run would go, and holds something else" in line


def test_a_run_with_something_else_in_it_is_not_replaced(tmp_path, command):
    kill(tmp_path, *command, at=CHECKPOINT)
    (tmp_path / "runs/tone/evaluations.jsonl").write_text("{}\n", "utf-8")
    line = refused(tmp_path, *command, "--overwrite")
    assert "runs/tone holds evaluations.jsonl, which is not of the run" in line


def test_what_somebody_put_beside_a_kept_model_stays(tmp_path, command):
    assert av_train(tmp_path, *command, "--keep-aligned").code == 0
    mine = tmp_path / "runs/tone/aligned/model.gguf"
    mine.write_text("converted", "utf-8")
    line = refused(tmp_path, *command, "--overwrite")
    assert "runs/tone holds aligned/model.gguf, which is not of the run" in line
    # Without --keep-aligned this run would be removed now.
    ended = av_train(tmp_path, *command, "--resume")
    assert ended.code == 0 and "not of the run: aligned/model.gguf" in ended.err
    assert mine.read_text("utf-8") == "converted"


def test_a_run_of_an_earlier_release_is_resumed_and_removed(tmp_path, command, vector):
    """It has no list of its aligned model's files."""
    kill(tmp_path, *command, at=r"write avs/\.tone.*/model.safetensors")
    (tmp_path / "runs/tone/aligned.json").unlink()
    assert av_train(tmp_path, *command, "--resume").code == 0
    assert contents(tmp_path / "avs/tone") == vector
    assert not any((tmp_path / "runs").iterdir())


def test_completions_that_were_paid_for_are_no_run(tmp_path, command, chat):
    chat.write = novelist
    domain, personas = write_hosting(tmp_path), write_personas(tmp_path)
    data = tmp_path / "data"
    made = ["run", "--domain", domain, "--out", data, "--count", 3, "--from", personas]
    result = synth(*made, "--base-url", chat.url, *TINY)
    assert result.exit_code == 0, result.output
    assert "queries" in json.loads((data / "settings.json").read_text("utf-8"))
    for options in (["--output_dir", data], ["--out", data]):
        for more in (["--overwrite"], ["--overwrite", "--resume"], ["--resume"], []):
            refused(tmp_path, *command, *options, *more)


def test_the_run_is_not_put_into_its_vector(tmp_path, command):
    for run in ("avs/tone", "avs/tone/run"):
        line = refused(tmp_path, *command, "--output_dir", run)
        assert line.endswith("the run would be in avs/tone: choose another --out, or --output_dir")


# What an owner wrote on a vector's card


def test_own_words_and_license_outlive_the_vector(tmp_path, command):
    assert av_train(tmp_path, *command).code == 0
    card = tmp_path / "avs/tone/README.md"
    text = card.read_text("utf-8")
    assert text.count(f"{BEGIN}\n\n{END}") == 1 and "license" not in text
    text = text.replace(f"{BEGIN}\n\n{END}", f"{BEGIN}\n\n{WORDS}\n\n{END}")
    card.write_text(text.replace("---\n", "---\nlicense: cc-by-4.0\n", 1), "utf-8")
    assert av_train(tmp_path, *command, "--seed", 1, "--overwrite").code == 0
    assert Kept.of(card.read_text("utf-8")) == Kept({"license": "cc-by-4.0"}, WORDS)
    (card.parent / "notes.txt").write_text("mine", "utf-8")
    line = refused(tmp_path, *command, "--seed", 2, "--overwrite")
    assert "avs/tone holds notes.txt, which is not of an alignment vector" in line
