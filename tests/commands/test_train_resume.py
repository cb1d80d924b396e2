"""av-train killed, out of space, or stopped, and continued with --resume."""

import json
import shutil
from collections.abc import Container, Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_model, make_tokenizer
from training_runs import av_train, contents, in_two_processes, kill, training, write_domain

# The validation loss is lowest at step 4 of 6, where it has not fallen twice in a row.
STOPS_EARLY = [
    *("--learning_rate", "0.1", "--lr_scheduler_type", "constant", "--num_train_epochs", "3"),
    *("--eval_steps", "1", "--save_steps", "1", "--bf16", "false"),
]
# Kill at any of these: the name says what is then half done.
MOMENTS = {
    "the pairs": r"write runs/\.tone.*/data/validation/dataset_info.json",
    "the settings": r"rename .*settings.json",
    "the run folder": r"rename runs/\.tone.* -> runs/tone$",
    "tokenization": r"rename runs/tone/data/train/tmp.*",
    "the first checkpoint": r"write runs/tone/checkpoint-2/config.json",
    "the second checkpoint": r"write runs/tone/checkpoint-4/trainer_state.json",
    "the second checkpoint's manifest": r"rename .* -> runs/tone/checkpoint-4/manifest.json",
    "the removal of the first checkpoint": r"rmtree runs/tone/checkpoint-2",
    "the last checkpoint": r"write runs/tone/checkpoint-6/.*manifest",
    "the history": r"rename .* -> runs/tone/history.json",
    "the aligned model": r"write runs/tone/\.aligned.*/tokenizer_config.json",
    "the vector": r"write avs/\.tone.*/model.safetensors",
    "the vector's metadata": r"write avs/\.tone.*/alignment_vector.json",
    "the vector's name": r"rename avs/\.tone.* -> avs/tone$",
    "the end": r"read avs/tone/alignment_vector.json",
}

# Of each kind one; the others take minutes.
OFTEN = [
    "the pairs", "the first checkpoint", "the second checkpoint's manifest", "the last checkpoint",
    "the vector", "the end",
]  # fmt: skip


def some(every: Iterable, often: Container) -> list:
    """Parameters of which all but a few are slow."""
    return [x if x in often else pytest.param(x, marks=pytest.mark.slow) for x in every]


@pytest.fixture
def command(tmp_path, base):
    """The options of a run in `tmp_path`, on a domain that is written there."""
    write_domain(tmp_path)
    return ["--domain", "tone.yml", "--base", base]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, base):
    """Options → the files of the vector that a run with them makes when nothing happens to it."""
    made = {}

    def vector(*options: str) -> dict[str, bytes]:
        if options not in made:
            folder = tmp_path_factory.mktemp("uninterrupted")
            domain = write_domain(folder)
            assert av_train(folder, "--domain", domain, "--base", base, *options).code == 0
            made[options] = contents(folder / "avs/tone")
        return made[options]

    return vector


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory, base):
    """Moment → a folder in which a run of `command` was killed then. Read only."""

    @cache
    def folder(moment: str) -> Path:
        folder = tmp_path_factory.mktemp("killed")
        write_domain(folder)
        kill(folder, "--domain", "tone.yml", "--base", base, at=moment)
        return folder

    return folder


@pytest.fixture
def killed_at(killed_runs, tmp_path, command):
    """Moment → in `tmp_path` is then what a run of `command` left that was killed."""

    def copy(moment: str) -> None:
        shutil.copytree(killed_runs(moment), tmp_path, dirs_exist_ok=True)

    return copy


def resume(folder: Path, *options: object, never: str | None = None) -> dict[str, bytes]:
    """Continue to the end, without a file operation like `never`; what the vector then holds."""
    ended = av_train(folder, *options, "--resume", kill_at=never)
    assert ended.code == 0, ended.err
    return contents(folder / "avs/tone")


@pytest.mark.parametrize("moment", some(MOMENTS, OFTEN))
def test_killed_in_the_middle_of(moment, tmp_path, command, killed_at, uninterrupted):
    killed_at(MOMENTS[moment])
    assert resume(tmp_path, *command) == uninterrupted()
    assert [path.name for path in (tmp_path / "avs").iterdir()] == ["tone"]
    assert not any((tmp_path / "runs").iterdir())


def test_killed_again_and_again(tmp_path, command, uninterrupted):
    for name in ("tokenization", "the first checkpoint", "the last checkpoint", "the vector"):
        kill(tmp_path, *command, "--resume", at=MOMENTS[name])
    assert resume(tmp_path, *command) == uninterrupted()


def test_killed_while_the_rest_of_the_run_is_removed(tmp_path, command, uninterrupted):
    # The first of these removals is of the empty place that the run folder was renamed from.
    kill(tmp_path, *command, at=r"rmtree runs/\.tone", times=2)
    assert resume(tmp_path, *command) == uninterrupted()
    assert not any((tmp_path / "runs").iterdir())


def test_finished_reference_pass_is_not_repeated(tmp_path, command, killed_at, uninterrupted):
    killed_at(MOMENTS["the first checkpoint"])
    cached = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("cache-*.arrow")}
    kill(tmp_path, *command, "--resume", at=MOMENTS["the last checkpoint"])
    assert cached == {path: path.stat().st_mtime_ns for path in cached}
    assert set(cached) == set((tmp_path / "runs").rglob("cache-*.arrow"))
    ended = av_train(tmp_path, *command, "--resume")
    assert "Computing reference" not in ended.err
    assert contents(tmp_path / "avs/tone") == uninterrupted()


def test_reference_pass_of_the_training_records_survives_a_kill_in_the_next(tmp_path, command):
    # The third file of a split holds its reference log-probabilities.
    kill(tmp_path, *command, at=r"write runs/tone/data/validation/tmp", times=6)
    ended = av_train(tmp_path, *command, "--resume")
    assert "Computing reference log probs for eval dataset" in ended.err
    assert "Computing reference log probs for train dataset" not in ended.err


def test_continues_from_the_newest_checkpoint(tmp_path, command, killed_at, uninterrupted):
    killed_at(MOMENTS["the last checkpoint"])
    # checkpoint-6 has all but its manifest, checkpoint-4 is whole: nothing before it is done again.
    assert resume(tmp_path, *command, never=r"write runs/tone/checkpoint-[24]/") == uninterrupted()


@pytest.mark.parametrize(
    "damage",
    some(
        ["empty", "no manifest", "cut", "file missing", "half manifest"], ["cut", "half manifest"]
    ),
)
def test_incomplete_checkpoint_is_passed_over(damage, tmp_path, command, killed_at, uninterrupted):
    killed_at(r"write runs/tone/checkpoint-6")
    whole, newest = tmp_path / "runs/tone/checkpoint-4", tmp_path / "runs/tone/checkpoint-6"
    shutil.rmtree(newest, ignore_errors=True)
    shutil.copytree(whole, newest)
    if damage == "empty":
        shutil.rmtree(newest)
        newest.mkdir()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    elif damage == "cut":
        weights = (newest / "model.safetensors").read_bytes()
        (newest / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif damage == "file missing":
        (newest / "optimizer.pt").unlink()
    else:
        (newest / "manifest.json").write_text('{"model.safetensors": 1', "utf-8")
    assert resume(tmp_path, *command, never=r"write runs/tone/checkpoint-2") == uninterrupted()


def test_stopped_early_ends_with_the_best_checkpoint(tmp_path, command, base, uninterrupted):
    kill(tmp_path, *command, *STOPS_EARLY, at=MOMENTS["the history"])
    best = load_file(tmp_path / "runs/tone/checkpoint-4/model.safetensors")
    vector = resume(
        tmp_path, *command, *STOPS_EARLY, never=r"write runs/tone/checkpoint-\d+/.*json$"
    )
    assert vector == uninterrupted(*STOPS_EARLY)
    history = training(tmp_path / "avs/tone")
    losses = [entry["eval_loss"] for entry in history["losses"] if "eval_loss" in entry]
    assert (history["steps"], history["best_step"]) == (6, 4) and min(losses) == losses[3]
    old, new = (load_file(p / "model.safetensors") for p in (base, tmp_path / "avs/tone"))
    for name, delta in new.items():
        assert torch.equal(delta, (best[name] - old[name].float()).bfloat16()), name


@pytest.mark.parametrize("moment", ["the first checkpoint", "the vector"])
def test_killed_with_a_base_of_short_context(moment, tmp_path, command):
    make_tokenizer(make_model(tmp_path / "short", context=42))
    kill(tmp_path, *command, "--base", "short", at=MOMENTS[moment])
    resume(tmp_path, *command, "--base", "short")
    assert training(tmp_path / "avs/tone")["max_length"] == 42


@pytest.mark.parametrize(
    ("options", "moment"),
    [
        (["--num_train_epochs", "0.5"], "the history"),  # transformers would train a step more
        (["--eval_on_start", "True"], "the last checkpoint"),  # would count as no progress
        pytest.param(
            ["--gradient_accumulation_steps", "2", "--eval_steps", "1", "--save_steps", "1"],
            "the first checkpoint", marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--bf16", "True", "--gradient_checkpointing", "True"], "the second checkpoint",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_killed_with_other_settings(options, moment, tmp_path, command, uninterrupted):
    kill(tmp_path, *command, *options, at=MOMENTS[moment])
    assert resume(tmp_path, *command, *options) == uninterrupted(*options)


def test_run_with_no_checkpoints_starts_over(tmp_path, command, uninterrupted):
    none = ["--save_strategy", "no", "--load_best_model_at_end", "False"]
    kill(tmp_path, *command, *none, at=MOMENTS["the history"])
    assert resume(tmp_path, *command, *none) == uninterrupted(*none)


def test_checkpoint_without_the_optimizer_is_not_continued_from(tmp_path, command, uninterrupted):
    weights_only = ["--save_only_model", "True"]
    kill(tmp_path, *command, *weights_only, at=MOMENTS["the history"])
    resumed = resume(tmp_path, *command, *weights_only)
    assert resumed["model.safetensors"] == uninterrupted()["model.safetensors"]


def test_two_processes_are_resumed(tmp_path, command):
    for folder in ("killed", "whole"):
        (tmp_path / folder).mkdir()
        write_domain(tmp_path / folder)
    small = [*command, "--per_device_train_batch_size", "2"]
    moment = r"write runs/tone/checkpoint-4/(trainer_state|rng_state_1)"
    killed = in_two_processes(tmp_path / "killed", *small, kill_at=moment)
    assert -9 in [ended.code for ended in killed]
    for folder, options in (("killed", [*small, "--resume"]), ("whole", small)):
        ended = in_two_processes(tmp_path / folder, *options)
        assert [one.code for one in ended] == [0, 0], ended
    assert contents(tmp_path / "killed/avs/tone") == contents(tmp_path / "whole/avs/tone")


@pytest.mark.parametrize("largest_file", some([3_000, 10_000, 50_000, 200_000], [10_000, 200_000]))
def test_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    largest_file, tmp_path, command, uninterrupted
):
    ended = av_train(tmp_path, *command, largest_file=largest_file)
    assert ended.code == 1 and ended.error.startswith("Error: ")
    assert not (tmp_path / "avs").exists() or not any((tmp_path / "avs").iterdir())
    assert resume(tmp_path, *command) == uninterrupted()


def test_earlier_run_needs_a_word(tmp_path, command, killed_at, uninterrupted):
    killed_at(MOMENTS["the second checkpoint"])
    ended = av_train(tmp_path, *command)
    assert ended.code == 1
    assert "runs/tone holds an earlier run" in ended.error
    assert "--resume" in ended.error and "--overwrite" in ended.error
    # Started over, with other settings.
    assert av_train(tmp_path, *command, "--seed", 1, "--overwrite").code == 0
    assert contents(tmp_path / "avs/tone") == uninterrupted("--seed", "1") != uninterrupted()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--learning_rate", "1e-3"], "learning_rate 0.0001, not 0.001"),
        (["--pairs", "all"], "pairs 'adjacent', not 'all'"),
        (["--max-records", "8"], "records '12 + 4"),
        (["--patience", "7"], "patience 2, not 7"),
        (["--lr_scheduler_kwargs", '{"num_cycles": 1}'], "lr_scheduler_kwargs"),
    ],
)
def test_other_settings_are_named(changed, named, tmp_path, command, killed_at):
    killed_at(MOMENTS["tokenization"])
    ended = av_train(tmp_path, *command, *changed, "--resume")
    assert ended.code == 1 and named in ended.error


def test_other_base_records_or_number_of_processes_are_named(tmp_path, command, killed_at, aligned):
    killed_at(MOMENTS["tokenization"])
    ended = av_train(tmp_path, *command, "--base", aligned, "--resume")
    assert ended.code == 1 and "was started with base" in ended.error
    first, second = in_two_processes(tmp_path, *command, "--resume")
    assert (first.code, second.code) == (1, 1) and "processes 1, not 2" in first.error
    write_domain(tmp_path, of="friend")
    ended = av_train(tmp_path, *command, "--resume")
    assert ended.code == 1 and "was started with records" in ended.error


def test_resume_starts_what_was_not_begun_and_keeps_what_is_done(tmp_path, command, uninterrupted):
    assert resume(tmp_path, *command) == uninterrupted()
    written = (tmp_path / "avs/tone/model.safetensors").stat().st_mtime_ns
    ended = av_train(tmp_path, *command, "--resume")
    assert (
        ended.code == 0 and "avs/tone is there: kept" in ended.err and "Training" not in ended.err
    )
    assert (tmp_path / "avs/tone/model.safetensors").stat().st_mtime_ns == written


def test_one_command_for_several_domains_is_resumed(tmp_path, command, uninterrupted):
    write_domain(tmp_path, "manners", of="neighbour")
    both = ["--domain", "manners.yml", *command]
    kill(tmp_path, *both, at=MOMENTS["the second checkpoint"])
    first = contents(tmp_path / "avs/manners")
    assert resume(tmp_path, *both) == uninterrupted()
    assert contents(tmp_path / "avs/manners") == first


def test_old_vector_stands_until_the_new_one_is_whole(tmp_path, command, uninterrupted):
    old, seed = uninterrupted(), ["--seed", "1"]
    assert resume(tmp_path, *command) == old
    for moment in ("the last checkpoint", "the vector's metadata"):
        kill(tmp_path, *command, *seed, "--overwrite", at=MOMENTS[moment])
        assert contents(tmp_path / "avs/tone") == old
    # There is a run, and a vector that is not its own: only --overwrite may replace it.
    ended = av_train(tmp_path, *command, *seed, "--resume")
    assert ended.code == 1 and "avs/tone exists" in ended.error
    assert resume(tmp_path, *command, *seed, "--overwrite") == uninterrupted(*seed) != old


def test_kept_aligned_model_gives_the_vector_again_without_training(tmp_path, command):
    kept = [*command, "--keep-aligned"]
    assert av_train(tmp_path, *kept).code == 0
    ended = av_train(tmp_path, *kept, "--resume", "--dtype", "float32", "--out", "avs/whole")
    assert ended.code == 0 and "Training" not in ended.err
    rounded, whole = (
        load_file(tmp_path / f"avs/{name}/model.safetensors") for name in ("tone", "whole")
    )
    for name, delta in whole.items():
        assert delta.dtype == torch.float32
        assert torch.equal(delta.bfloat16(), rounded[name]), name
    settings = json.loads((tmp_path / "runs/tone/settings.json").read_text("utf-8"))
    assert settings["domain"] == "tone"
