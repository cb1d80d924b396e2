"""av-train: from records to an alignment vector, in one process and in two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny import make_model, make_tokenizer
from training_runs import LEARNS, av_train, contents, in_two_processes, training, write_domain
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState

from mergekit_av import AlignmentVector, load_domain, load_records, mean_log_probs
from mergekit_av.cli.check import av_check
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.training.arguments import training_arguments
from mergekit_av.training.history import loss_warning
from mergekit_av.training.job import Job


@pytest.fixture
def command(tmp_path, base):
    """The options of a run in `tmp_path`, on a domain that is written there."""
    write_domain(tmp_path)
    return ["--domain", "tone.yml", "--base", base]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base):
    """A folder in which av-train has learnt the tiny domain, and what it printed. Read only."""
    folder = tmp_path_factory.mktemp("trained")
    domain = write_domain(folder)
    options = ["--domain", domain, "--base", base, "--keep-aligned", "--dtype", "float32"]
    before = contents(base)
    ended = av_train(folder, *options, *LEARNS)
    assert ended.code == 0, ended.err
    assert contents(base) == before
    return folder, ended


def test_vector_is_what_training_added_to_the_base(trained, base):
    folder, _ = trained
    aligned = AutoModelForCausalLM.from_pretrained(folder / "runs/tone/aligned", dtype="auto")
    assert aligned.dtype == torch.float32
    weights, old = aligned.state_dict(), load_file(base / "model.safetensors")
    vector = load_file(folder / "avs/tone/model.safetensors")
    assert set(vector) == set(old)
    for name, delta in vector.items():
        assert torch.equal(delta, weights[name] - old[name].float()), name
    # Differences too small for the base's bfloat16 are there as well.
    assert sum((delta == 0).sum() for delta in vector.values()) < 100
    assert "of the float32 weights" in (folder / "avs/tone/alignment_vector.json").read_text(
        "utf-8"
    )


def test_aligned_model_is_a_whole_one(trained, base):
    folder, _ = trained
    kept = folder / "runs/tone"
    assert sorted(path.name for path in kept.iterdir()) == [
        "aligned",
        "aligned.json",
        "history.json",
        "settings.json",
    ]
    assert not list(kept.rglob("*.bin")) and not list(kept.rglob("*.pt"))  # no pickles
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (base, kept / "aligned")]
    message = [{"role": "user", "content": "Good day"}]
    first, second = (t.apply_chat_template(message, tokenize=False) for t in tokenizers)
    assert first == second


def test_better_levels_gain_on_worse_ones(trained, base):
    folder, _ = trained
    records = load_records(load_domain(folder / "tone.yml"))
    tokenizer = load_tokenizer(base)
    before = mean_log_probs(load_model(base), tokenizer, records)
    after = mean_log_probs(
        AlignmentVector.open(folder / "avs/tone").apply_to(load_model(base)), tokenizer, records
    )
    gain = after - before
    assert (gain[:, 0] - gain[:, 1] > 1).all() and (gain[:, 1] - gain[:, 2] > 1).all()


def test_metadata_says_how_it_was_trained(trained):
    history = training(trained[0] / "avs/tone")
    assert (history["records"], history["validation_records"]) == (12, 4)
    assert (history["processes"], history["steps"], history["loss_type"]) == (1, 18, "ipo")
    assert (history["responses_cut"], history["records_left_out"]) == (0, 0)
    losses = {e["step"]: e["eval_loss"] for e in history["losses"] if "eval_loss" in e}
    assert history["best_step"] == min(losses, key=losses.get) and min(losses.values()) < 5
    metadata = json.loads((trained[0] / "avs/tone/alignment_vector.json").read_text("utf-8"))
    assert metadata["levels"] == ["warm", "neutral", "cold"]


def test_summary_on_stdout_progress_on_stderr(trained):
    _, ended = trained
    lines = ended.out.splitlines()
    assert lines[0].startswith("avs/tone: alignment vector 'tone' of ") and len(lines) == 4
    assert "12 records, 18 steps, lowest validation loss" in lines[-1]
    for bar in ("Computing reference log probs", "Training:", "Writing tone"):
        assert bar in ended.err
    for noise in ("Warning", "missing keys", "{'", "grad_norm"):
        assert noise not in ended.err


def test_without_progress_bars_nothing_else_is_printed_instead(tmp_path, command):
    ended = av_train(tmp_path, *command, "--disable_tqdm", "True")
    assert ended.code == 0 and "Training:" not in ended.err
    assert len(ended.out.splitlines()) == 4


def test_same_seed_same_bytes(tmp_path, command):
    for out, seed in (("one", 1), ("again", 1), ("other", 2)):
        assert av_train(tmp_path, *command, "--out", f"avs/{out}", "--seed", seed).code == 0
    one, again, other = (contents(tmp_path / f"avs/{n}") for n in ("one", "again", "other"))
    assert one == again
    assert one["model.safetensors"] != other["model.safetensors"]
    assert not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(("pairs", "steps"), [("adjacent", 6), ("all", 9)])
def test_pairs(pairs, steps, tmp_path, command):
    assert av_train(tmp_path, *command, "--pairs", pairs).code == 0
    history = training(tmp_path / "avs/tone")
    assert (history["pairs"], history["steps"]) == (pairs, steps)


def test_max_records_keeps_the_validation_records(tmp_path, command):
    assert av_train(tmp_path, *command, "--max-records", 6).code == 0
    history = training(tmp_path / "avs/tone")
    assert (history["records"], history["validation_records"], history["steps"]) == (6, 4, 3)


def test_cut_responses_and_left_out_records_are_counted(tmp_path, command, base):
    records = [
        json.loads(line) for line in (tmp_path / "tone.jsonl").read_text("utf-8").splitlines()
    ]
    records[0]["query"] *= 3
    (tmp_path / "tone.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    tokenizer = AutoTokenizer.from_pretrained(base)
    limit, cut, left_out = 42, 0, 0
    for record in records:
        prompt = [{"role": "user", "content": record["query"]}]
        if length(tokenizer, prompt, add_generation_prompt=True) >= limit:
            left_out += 1
            continue
        for text in record["responses"].values():
            cut += length(tokenizer, [*prompt, {"role": "assistant", "content": text}]) > limit
    assert (left_out, cut) == (1, 15)
    ended = av_train(tmp_path, *command, "--max_length", limit)
    assert ended.code == 0, ended.err
    assert "15 of 48 responses go beyond the limit of 42 tokens" in ended.err
    assert "1 of 16 records are left out" in ended.err
    history = training(tmp_path / "avs/tone")
    assert (history["responses_cut"], history["records_left_out"]) == (15, 1)


def length(tokenizer, messages: list[dict], **options: object) -> int:
    return len(tokenizer.apply_chat_template(messages, **options)["input_ids"])


def test_the_bases_context_is_a_limit_too(tmp_path, command):
    short = make_model(tmp_path / "short", context=42)
    make_tokenizer(short)
    ended = av_train(tmp_path, *command, "--base", short)
    assert ended.code == 0 and "the limit of 42 tokens" in ended.err
    assert training(tmp_path / "avs/tone")["max_length"] == 42


@pytest.mark.parametrize(
    ("options", "untrained"),
    [
        ([], "25"),
        # Of other losses than IPO's, the untrained model's is known where it was measured.
        (["--loss_type", "sigmoid", "--eval_on_start", "--load_best_model_at_end", "no"], "0.69"),
    ],
)
def test_vector_whose_loss_says_that_the_base_is_no_worse_carries_a_warning(
    tmp_path, command, options, untrained
):
    options = ["--learning_rate", "3", *options]
    ended = av_train(tmp_path, *command, "--lr_scheduler_type", "constant", *options)
    assert ended.code == 0, ended.err
    warning = training(tmp_path / "avs/tone")["warning"]
    assert f"is not below the untrained model's, {untrained}" in warning
    assert f"  WARNING: {warning}" in ended.out.splitlines()[-2:]
    checked = CliRunner().invoke(av_check, [str(tmp_path / "avs/tone")])
    assert f"  WARNING: {warning}" in checked.output
    card = (tmp_path / "avs/tone/README.md").read_text("utf-8")
    assert card.count(warning) == 1 and card.index(warning) < card.index("```yaml")


def test_vector_that_learnt_carries_none(trained):
    assert training(trained[0] / "avs/tone")["warning"] is None
    assert "Warning" not in (trained[0] / "avs/tone/README.md").read_text("utf-8")


@pytest.mark.parametrize(("best", "warned"), [(True, False), (False, True)])
def test_the_loss_that_counts_is_that_of_the_weights_that_are_kept(tmp_path, best, warned):
    options = [f"--load_best_model_at_end={best}"]
    arguments = training_arguments(options, setting="paper", output_dir=str(tmp_path))
    job = Job("base", load_domain("legal"), [], tmp_path / "av", arguments)
    losses = [{"step": 1, "eval_loss": 20.0}, {"step": 2, "eval_loss": 30.0}]
    state = TrainerState(global_step=2, best_global_step=1, log_history=losses)
    assert bool(loss_warning(job, state)) == warned


def test_several_domains_make_several_vectors(tmp_path, command):
    write_domain(tmp_path, "manners", of="neighbour")
    ended = av_train(tmp_path, *command, "--domain", "manners.yml")
    assert ended.code == 0, ended.err
    tone, manners = (contents(tmp_path / f"avs/{name}") for name in ("tone", "manners"))
    assert tone["model.safetensors"] != manners["model.safetensors"]
    assert ended.out.count("alignment vector") == 2
    # The second made alone is the same: nothing of the first training is left in it.
    alone = av_train(tmp_path, *command[2:], "--domain", "manners.yml", "--overwrite")
    assert alone.code == 0 and contents(tmp_path / "avs/manners") == manners


def test_one_output_in_the_way_stops_all_before_any_training(tmp_path, command):
    write_domain(tmp_path, "manners")
    (tmp_path / "avs/manners").mkdir(parents=True)
    ended = av_train(tmp_path, *command, "--domain", "manners.yml")
    assert ended.code == 1 and "avs/manners exists" in ended.error
    assert not (tmp_path / "avs/tone").exists() and not list(tmp_path.glob("runs/*"))


def test_validation_loss_is_measured_after_the_last_step_too(tmp_path, command):
    assert av_train(tmp_path, *command, "--eval_steps", "4", "--save_steps", "4").code == 0
    history = training(tmp_path / "avs/tone")
    measured = [entry["step"] for entry in history["losses"] if "eval_loss" in entry]
    assert measured == [4, 6] == [4, history["steps"]]


def test_without_evaluation_the_last_weights_count(tmp_path, command):
    off = ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    assert av_train(tmp_path, *command, *off).code == 0
    history = training(tmp_path / "avs/tone")
    assert history["steps"] == 6 and not any("eval_loss" in entry for entry in history["losses"])


def test_two_processes_train_as_one(tmp_path, command):
    whole = [*command, "--dtype", "float32", "--bf16", "false"]
    small = [*whole, "--out", "avs/two", "--per_device_train_batch_size", "2"]
    assert av_train(tmp_path, *whole).code == 0
    first, second = in_two_processes(tmp_path, *small)
    assert (first.code, second.code) == (0, 0), second.err
    assert "training in 2 processes" in first.err and "avs/two" in first.out and not second.out
    one, two = (training(tmp_path / f"avs/{name}") for name in ("tone", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    # Two batches of 2 are one of 4: each pair was seen once, and each gradient averaged.
    assert one["steps"] == two["steps"] == 6
    one, two = (load_file(tmp_path / f"avs/{n}/model.safetensors") for n in ("tone", "two"))
    for name, delta in one.items():
        torch.testing.assert_close(two[name], delta, rtol=0, atol=1e-7)
        assert delta.abs().max() > 1e-5


def test_both_processes_end_when_the_first_refuses(tmp_path, command):
    (tmp_path / "avs/tone").mkdir(parents=True)
    first, second = in_two_processes(tmp_path, *command)
    assert (first.code, second.code) == (1, 1)
    assert "avs/tone exists" in first.error and "Traceback" not in second.err


@pytest.mark.slow
def test_torchrun_starts_the_command_in_two_processes(tmp_path, command):
    programs = Path(sys.executable).parent
    torchrun = [programs / "torchrun", "--nproc_per_node", "2", "--no-python"]
    paper = [programs / "av-train", "--setting", "paper", *command]
    # At a port of its own: torchrun's default one may be another program's.
    alone = {**os.environ, "PET_STANDALONE": "1"}
    ended = subprocess.run(
        [*torchrun, *paper], cwd=tmp_path, env=alone, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    history = training(tmp_path / "avs/tone")
    assert (history["processes"], history["steps"]) == (2, 3)
    assert len(ended.stdout.splitlines()) == 4
    # Bars that are full within a second are not shown.
    assert "FutureWarning" not in ended.stderr and "Tokenizing" not in ended.stderr
