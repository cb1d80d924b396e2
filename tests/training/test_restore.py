"""Trainings of bases whose tensors have other names on disk than in memory."""

import json
from pathlib import Path

import pytest
import torch
from architectures import SPECIAL
from damage import edit_json, edit_tensors
from safetensors.torch import load_file
from training_runs import av_train, contents, kill, write_domain

from mergekit_av.io.checkpoint import SINGLE
from mergekit_av.training.restore import put_back

RUN = [
    *("--learning_rate", "3e-3", "--bf16", "false", "--dtype", "float32"),
    *("--eval_steps", "1", "--save_steps", "1", "--save_total_limit", "10"),
]
# One of each kind in every run of the suite.
KINDS = ["mixtral", "gpt-neox"]
architecture = pytest.mark.parametrize(
    "name",
    [
        *KINDS,
        *(pytest.param(name, marks=pytest.mark.slow) for name in SPECIAL if name not in KINDS),
    ],
)


def command(name: str, folder: Path) -> list[object]:
    base, _ = SPECIAL[name].make(folder / "base", folder / "unused")
    domain = write_domain(folder)
    return ["--domain", domain, "--base", base, *RUN]


def turn_validation_around(folder: Path) -> None:
    """Let the validation records prefer what the training records do not: the first step is the best."""
    file = folder / "tone.jsonl"
    records = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for record in records:
        if record["split"] == "validation":
            texts = record["responses"]
            texts["warm"], texts["cold"] = texts["cold"], texts["warm"]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


@architecture
def test_the_best_checkpoint_is_kept_whole(name, tmp_path):
    options = command(name, tmp_path)
    turn_validation_around(tmp_path)
    kill(tmp_path, *options, at=r"rename .*\.aligned.* -> runs/tone/aligned$")
    run = tmp_path / "runs/tone"
    history = json.loads((run / "history.json").read_text("utf-8"))
    best, last = history["best_step"], history["steps"]
    assert best < last
    [aligned] = run.glob(".aligned*/")
    kept, of_best, of_last = (
        load_file(folder / SINGLE)
        for folder in (aligned, run / f"checkpoint-{best}", run / f"checkpoint-{last}")
    )
    assert kept.keys() == of_best.keys() == of_last.keys()
    assert any(not torch.equal(of_best[tensor], of_last[tensor]) for tensor in kept)
    assert not [tensor for tensor in kept if not torch.equal(kept[tensor], of_best[tensor])]


@architecture
def test_a_resumed_training_gives_the_vector_of_an_uninterrupted_one(name, tmp_path):
    options = command(name, tmp_path)
    whole = av_train(tmp_path, *options)
    assert whole.code == 0, whole.err
    wanted = contents(tmp_path / "avs/tone")
    kill(tmp_path, *options, "--overwrite", at=r"write runs/tone/checkpoint-4/config.json")
    ended = av_train(
        tmp_path, *options, "--overwrite", "--resume", kill_at=r"write .*checkpoint-[123]/config"
    )
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "avs/tone") == wanted


def test_a_checkpoint_of_another_model_is_not_put_back(tmp_path):
    base, aligned = SPECIAL["mixtral"].make(tmp_path / "base", tmp_path / "aligned")
    model = SPECIAL["mixtral"].model_class.from_pretrained(base)
    put_back(model, aligned)
    expected = SPECIAL["mixtral"].model_class.from_pretrained(aligned).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    lost = "model.layers.0.block_sparse_moe.gate.weight"
    edit_tensors(aligned, lambda tensors: tensors.pop(lost))
    with pytest.raises(Exception, match=r"has no tensor model.layers.0.mlp.gate.weight"):
        put_back(model, aligned)


def _quantise(base: Path) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    edit_json(base / "config.json", lambda config: config.update(quantization_config=settings))


def _halve(base: Path) -> None:
    edit_tensors(base, lambda tensors: tensors.pop("gpt_neox.final_layer_norm.weight"))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_quantise, "base is quantised (fp8)"),
        (_halve, "has no tensor gpt_neox.final_layer_norm.weight"),
    ],
)
def test_a_base_that_no_vector_can_be_made_of_is_refused_before_the_training(harm, says, tmp_path):
    options = command("gpt-neox", tmp_path)
    harm(tmp_path / "base")
    ended = av_train(tmp_path, *options)
    assert ended.code == 1 and says in ended.error
    assert "Training" not in ended.err and not (tmp_path / "avs").exists()
