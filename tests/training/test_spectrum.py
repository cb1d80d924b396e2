"""av-train --lambdas: one vector trained at several λ."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_runs import (
    BOTH,
    assert_two_processes_accumulate,
    av_train,
    contents,
    gains,
    training,
    write_domain,
)

from mergekit_av import load_domain, load_records
from mergekit_av.errors import AVError
from mergekit_av.training.lambdas import parse_lambdas
from mergekit_av.training.spectrum import LambdaSampler


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base):
    """A folder with a vector that was trained in both directions. Read only."""
    folder = tmp_path_factory.mktemp("both")
    ended = av_train(folder, "--domain", write_domain(folder), "--base", base, *BOTH)
    assert ended.code == 0, ended.err
    return folder


def test_each_direction_prefers_its_own_level(trained, base):
    # IPO's target is 1/2β = 2 nats per token over the neighbour: generic for both ends.
    for value, own in ((1, 0), (-1, 2)):
        gain = gains(trained / "avs/tone", trained / "tone.yml", base, value).mean(axis=0)
        assert gain[own] - gain[1] == pytest.approx(2, abs=0.7), value


def test_a_level_between_is_trained_at_its_own_lambda(tmp_path, base):
    domain = write_domain(tmp_path)
    options = [*BOTH, "--lambdas", "1,-0.5,-1", "--pairs", "all"]
    ended = av_train(tmp_path, "--domain", domain, "--base", base, *options)
    assert ended.code == 0, ended.err
    assert training(tmp_path / "avs/tone")["lambdas"] == [1, -0.5, -1]
    for value, own in ((1, 0), (-0.5, 1), (-1, 2)):
        gain = gains(tmp_path / "avs/tone", domain, base, value).mean(axis=0)
        assert gain.argmax() == own, (value, gain)


def test_the_validation_loss_is_that_of_each_pair_at_its_own_lambda(tmp_path, base):
    domain = write_domain(tmp_path)
    short = [*BOTH, "--num_train_epochs", "1", "--dtype", "float32", "--bf16", "false"]
    ended = av_train(tmp_path, "--domain", domain, "--base", base, *short)
    assert ended.code == 0, ended.err
    # IPO: the square of the margin's distance from 1/2β. The vector is that of the lowest loss.
    logged = training(tmp_path / "avs/tone")["losses"]
    lowest = min(entry["eval_loss"] for entry in logged if "eval_loss" in entry)
    records = load_records(load_domain(domain))
    held_out = torch.tensor([record.split == "validation" for record in records])
    losses = []
    for value, own in ((1, 0), (-1, 2)):
        gain = gains(tmp_path / "avs/tone", domain, base, value)[held_out]
        losses.append((gain[:, own] - gain[:, 1] - 2) ** 2)
    assert lowest == pytest.approx(torch.stack(losses).mean().item(), rel=1e-3)


@given(
    sizes=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=4),
    batch=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_each_batch_has_one_lambda_and_no_row_is_left_out(sizes, batch, epoch):
    # Of each λ, how many rows each record has there.
    rows = [
        (float(value), record)
        for value, counts in enumerate(sizes)
        for record, count in enumerate(counts)
        for _ in range(count)
    ]
    lambdas, records = zip(*rows, strict=True)
    sampler = LambdaSampler(lambdas, records, batch, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler) and set(order) == set(range(len(lambdas)))
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    at = [{lambdas[row] for row in rows} for rows in batches]
    assert all(len(values) == 1 for values in at)
    assert all(a != b for a, b in pairwise(at)) or len(sizes) == 1
    assert order == list(sampler)
    times = Counter(order)
    for value in set(lambdas):
        counts = [times[row] for row in range(len(lambdas)) if lambdas[row] == value]
        assert max(counts) - min(counts) <= 1  # as often as one another


@given(sizes=st.lists(st.integers(1, 2), min_size=1, max_size=12), batch=st.sampled_from([2, 4, 6]))
def test_the_rows_of_a_record_are_in_one_batch(sizes, batch):
    records = [record for turn in range(2) for record, n in enumerate(sizes) if turn < n]
    order = list(LambdaSampler([1.0] * len(records), records, batch, seed=1))
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    # The last two may have to take what is left, and what comes again.
    for rows in batches[:-2]:
        there = Counter(records[row] for row in rows)
        assert all(count == sizes[record] for record, count in there.items())


def test_a_record_with_more_rows_than_a_batch_is_cut_into_whole_batches():
    records = [record for record in range(4) for _ in range(6)]
    order = list(LambdaSampler([1.0] * 24, records, 3, seed=1))
    assert all(len({records[row] for row in order[i : i + 3]}) == 1 for i in range(0, 24, 3))


def test_each_epoch_is_shuffled_anew():
    sampler = LambdaSampler([1.0] * 20 + [-1.0] * 20, [*range(10)] * 4, 4, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    of_records = [[row % 10 for row in order] for order in (first, second)]
    assert of_records[0] != of_records[1]


def test_a_killed_run_continues_to_the_same_vector(tmp_path, base, trained):
    command = ["--domain", write_domain(tmp_path), "--base", base, *BOTH]
    killed = av_train(tmp_path, *command, kill_at="write .*checkpoint-27/.*json")
    assert killed.code == -9
    ended = av_train(tmp_path, *command, "--resume")
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "avs/tone") == contents(trained / "avs/tone")


def test_two_processes_train_as_two_accumulated_batches(tmp_path, base):
    # Either way a step is of one batch at 1 and one at -1, computed from the same weights.
    command = ["--domain", write_domain(tmp_path), "--base", base, *BOTH]
    assert_two_processes_accumulate(tmp_path, *command, "--num_train_epochs", "1")


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
