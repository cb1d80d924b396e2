"""av-train without --lambdas: each level at a λ of its own, but for what the base prefers already."""

import json
import re

import pytest
from training_runs import LEARNS, av_train, training, write_domain

from mergekit_av import load_domain, load_records, mean_log_probs
from mergekit_av.models.load import load_model, load_tokenizer

SPECTRUM = ["--setting", "spectrum", *LEARNS, "--num_train_epochs", "1"]


LOADED = re.compile("Loading weights: 100%")  # transformers' bar


def put(folder, base, place: int) -> None:
    """Rewrite the domain's records so that the response the base prefers is at this place."""
    domain = load_domain(folder / "tone.yml")
    records = load_records(domain)
    scores = mean_log_probs(load_model(base), load_tokenizer(base), records)
    rows = [json.loads(line) for line in (folder / "tone.jsonl").read_text("utf-8").splitlines()]
    for row, means in zip(rows, scores, strict=True):
        texts = list(row["responses"].values())
        best = texts.pop(int(means.argmax()))
        texts.insert(place, best)
        row["responses"] = dict(zip(domain.levels, texts, strict=True))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "tone.jsonl").write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("preferred", "lambdas"), [(0, [1, -0.5, -1]), (1, [1, -1]), (2, [1, -0.5, -1])]
)
def test_a_middle_level_that_the_base_prefers_is_not_trained(tmp_path, base, preferred, lambdas):
    write_domain(tmp_path)
    put(tmp_path, base, preferred)
    ended = av_train(tmp_path, "--domain", "tone.yml", "--base", base, *SPECTRUM)
    assert ended.code == 0, ended.err
    found = training(tmp_path / "avs/tone")
    assert found["lambdas"] == lambdas
    assert (found["loss_type"], found["loss_weights"]) == (["ipo", "sft"], [0.5, 1.0])
    # The model that was scored is the one that is trained.
    assert len(LOADED.findall(ended.err)) == 1
    says = "the base prefers neutral on 12 of 12 records: λ = 0 gives it, it is not trained"
    assert (says in ended.err) == (preferred == 1)


def test_where_equal_responses_are_preferred_nothing_is_settled(tmp_path, base):
    write_domain(tmp_path)
    put(tmp_path, base, 1)
    rows = [json.loads(line) for line in (tmp_path / "tone.jsonl").read_text("utf-8").splitlines()]
    # In three of twelve, all that the base could prefer is at two levels.
    for row in rows[:3]:
        row["responses"]["cold"] = row["responses"]["neutral"]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "tone.jsonl").write_text(text, "utf-8")
    ended = av_train(tmp_path, "--domain", "tone.yml", "--base", base, *SPECTRUM)
    assert ended.code == 0, ended.err
    assert "the base prefers neutral on 9 of 9 records" in ended.err
    assert "3 of 32 pairs are left out: both responses are the same" in ended.err


def test_what_is_typed_wins(tmp_path, base):
    write_domain(tmp_path)
    put(tmp_path, base, 1)
    command = ["--domain", "tone.yml", "--base", base, *SPECTRUM, "--lambdas", "1,-0.5"]
    ended = av_train(tmp_path, *command)
    assert ended.code == 0, ended.err
    assert training(tmp_path / "avs/tone")["lambdas"] == [1, -0.5]
    assert "not trained" not in ended.err


def test_a_killed_run_of_it_continues(tmp_path, base):
    write_domain(tmp_path)
    put(tmp_path, base, 1)
    command = ["--domain", "tone.yml", "--base", base, *SPECTRUM]
    killed = av_train(tmp_path, *command, kill_at="write .*checkpoint-6/.*json")
    assert killed.code == -9
    ended = av_train(tmp_path, *command, "--resume")
    assert ended.code == 0, ended.err
    assert training(tmp_path / "avs/tone")["steps"] == 12
