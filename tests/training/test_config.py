"""Training as a Python call: what the command refuses is refused, what it writes is returned."""

from pathlib import Path

import pytest
from training_runs import training, write_domain

from mergekit_av.errors import AVError, UsageError
from mergekit_av.io.locks import locked
from mergekit_av.training.arguments import training_arguments
from mergekit_av.training.config import TrainConfig
from mergekit_av.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--domain, or --joint"),
        ({"domains": ["legal"], "joint": "legal=expert"}, "--domain, or --joint"),
        ({"domains": ["legal", "medical"], "out": Path("av")}, "exactly one --domain"),
        ({"domains": ["legal", "medical"], "push_to_hub": "a/b"}, "exactly one --domain"),
        ({"domains": ["legal"], "private": True}, "goes with --push-to-hub"),
        ({"domains": ["legal"], "hold_weight": 2.0}, "goes with --hold"),
        ({"domains": ["legal"], "hold": ["medical"], "hold_weight": float("inf")}, "a number"),
        ({"joint": "legal=expert", "hold": ["medical"]}, "--hold goes with --domain"),
        ({"joint": "legal=expert", "lambdas": (1.0, -1.0)}, "--lambdas goes with --domain"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(options, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**options)


def test_lambdas_without_one_are_refused():
    with pytest.raises(AVError, match=r"1 among them, not '0.5,-1'"):
        TrainConfig(["legal"], lambdas=(0.5, -1.0))


def test_arguments_may_be_a_mapping(tmp_path):
    file = tmp_path / "config.yml"
    file.write_text("seed: 7\nbeta: 0.3\n", "utf-8")
    arguments = training_arguments({"beta": 0.5, "report_to": ["none"]}, file)
    assert (arguments.seed, arguments.beta, arguments.report_to) == (7, 0.5, [])
    with pytest.raises(UsageError, match="DPOConfig has no field 'learning_rte'"):
        training_arguments({"learning_rte": 1})


def test_the_vectors_that_are_written_are_returned_and_shown_when_they_are(
    tmp_path, base, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(
        [write_domain(tmp_path)],
        base=str(base),
        setting="paper",
        arguments={"bf16": False, "max_steps": 1},
    )
    with locked(tmp_path / "runs/tone"):  # by this process, which may hold it twice
        shown = []
        [vector] = train(config, on_vector=shown.append).vectors
    assert shown == [vector] and vector.folder == Path("avs/tone")
    assert training(tmp_path / "avs/tone")["steps"] == 1
    with pytest.raises(AVError, match="avs/tone exists"):
        train(config)
