"""av-train --lambdas: one vector trained at several λ."""

import math

import pytest
import torch
from test_training import LEARNS
from training_runs import av_train, contents, training, write_domain

from mergekit_av import AlignmentVector, load_domain, load_records, mean_log_probs
from mergekit_av.errors import AVError
from mergekit_av.models import load_model, load_tokenizer
from mergekit_av.training.lambdas import parse_lambdas
from mergekit_av.training.spectrum import _oriented

BOTH = ["--lambdas", "1,-1", *LEARNS, "--num_train_epochs", "6", "--beta", "0.25"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base):
    """A folder with a vector that was trained in both directions. Read only."""
    folder = tmp_path_factory.mktemp("both")
    ended = av_train(folder, "--domain", write_domain(folder), "--base", base, *BOTH)
    assert ended.code == 0, ended.err
    return folder


def gains(folder, base, value):
    """What λ adds to the mean log-probabilities: [records, levels], nats per token."""
    records = load_records(load_domain(folder / "tone.yml"))
    tokenizer, model = load_tokenizer(base), load_model(base)
    before = mean_log_probs(model, tokenizer, records)
    vector = value * AlignmentVector.open(folder / "avs/tone")
    return mean_log_probs(vector.apply_to(model), tokenizer, records) - before


def test_each_direction_has_its_order(trained, base):
    for value in (1, -1):
        gain = value * gains(trained, base, value)
        assert (gain[:, 0] > gain[:, 1]).all() and (gain[:, 1] > gain[:, 2]).all(), value


def test_margins_are_those_asked_for_on_both_sides(trained, base):
    # IPO's target is 1/2β = 2 nats per token between neighbours.
    for value in (1, -1):
        gain = value * gains(trained, base, value).mean(axis=0)
        assert [gain[0] - gain[1], gain[1] - gain[2]] == pytest.approx([2, 2], abs=0.7), value


def test_a_level_between_is_trained_at_its_own_lambda(tmp_path, base):
    domain = write_domain(tmp_path)
    ended = av_train(tmp_path, "--domain", domain, "--base", base, *BOTH, "--lambdas", "1,-0.5,-1")
    assert ended.code == 0, ended.err
    assert training(tmp_path / "avs/tone")["lambdas"] == [1, -0.5, -1]
    gain = gains(tmp_path, base, -0.5).mean(axis=0)
    assert gain[1] > gain[0]
    ends = gains(tmp_path, base, 1).mean(axis=0), gains(tmp_path, base, -1).mean(axis=0)
    assert ends[0][0] > ends[0][2] and ends[1][2] > ends[1][0]


def test_at_each_lambda_a_batch_is_turned_pair_by_pair():
    # Two pairs: expert over generic turns at 0.25, generic over avoidance at -0.75.
    batch = {
        "input_ids": torch.tensor([[1, 1], [2, 2], [3, 3], [4, 4]]),
        "ref_chosen_logps": torch.tensor([-1.0, -2.0]),
        "ref_rejected_logps": torch.tensor([-3.0, -4.0]),
        "turn": torch.tensor([0.25, -0.75]),
    }
    for value, order in ((1, [1, 2, 3, 4]), (-0.5, [3, 2, 1, 4]), (-1, [3, 4, 1, 2])):
        turned = _oriented(batch, value)
        assert turned["input_ids"].tolist() == [[token, token] for token in order], value
        logps = [*turned["ref_chosen_logps"].tolist(), *turned["ref_rejected_logps"].tolist()]
        assert logps == [-token for token in order] and "turn" not in turned


def test_a_killed_run_continues_to_the_same_vector(tmp_path, base, trained):
    command = ["--domain", write_domain(tmp_path), "--base", base, *BOTH]
    killed = av_train(tmp_path, *command, kill_at="write .*checkpoint-27/.*json")
    assert killed.code == -9
    ended = av_train(tmp_path, *command, "--resume")
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "avs/tone") == contents(trained / "avs/tone")


def test_a_run_is_not_continued_at_other_lambdas(tmp_path, base):
    command = ["--domain", write_domain(tmp_path), "--base", base]
    assert av_train(tmp_path, *command, "--lambdas", "1,-1", kill_at="write .*history").code == -9
    ended = av_train(tmp_path, *command, "--resume")
    assert ended.code == 1 and "was started with lambdas [1.0, -1.0], not [1.0]" in ended.err


def test_a_joint_model_has_no_other_side(tmp_path, base):
    ended = av_train(tmp_path, "--joint", "medical=expert", "--base", base, "--lambdas", "1,-1")
    assert ended.code == 2 and "--lambdas goes with --domain" in ended.err


@pytest.mark.parametrize("text", ["", "one", "1,,2", "1,0", "1,-1,1", "1,inf", "nan,1", "-1", "2"])
def test_lambdas_that_make_no_sense(text):
    with pytest.raises(AVError, match="--lambdas must"):
        parse_lambdas(text)


def test_lambdas_are_numbers():
    assert parse_lambdas("1, -0.5,-1") == (1, -0.5, -1)
    assert math.isclose(parse_lambdas("1,-1e-1")[1], -0.1)
