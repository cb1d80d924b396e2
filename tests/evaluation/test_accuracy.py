"""Preference accuracy: shares, intervals, the dominant level, and what is left out."""

import copy
import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny import CHAT_TEMPLATE, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import Record
from mergekit_av.errors import AVError
from mergekit_av.evaluation.accuracy import evaluate, summarise
from mergekit_av.evaluation.rendering import accuracy_table, as_json
from mergekit_av.models.scoring import mean_log_probs
from mergekit_av.stats import wilson

THREE = Domain("tone", {"warm": "", "neutral": "", "cold": ""})


def summary(scores, domain=THREE, **options):
    scores = torch.tensor(scores, dtype=torch.float32)
    return summarise(domain, "test", [f"r{i}" for i in range(len(scores))], scores, **options)


def won(*counts: int):
    """A result in which each level wins so many records."""
    levels = range(len(counts))
    scores = [
        [0.0 if other == level else -1.0 for other in levels]
        for level in levels
        for _ in range(counts[level])
    ]
    return summary(scores, Domain("tone", {f"level {level}": "" for level in levels}))


@settings(deadline=None)
@given(st.data())
def test_shares_add_up_to_one_and_everything_is_json(data):
    levels = data.draw(st.integers(2, 6))
    # Few values, so that equal scores are common.
    row = st.lists(st.sampled_from([-3.5, -2.0, -1.0]), min_size=levels, max_size=levels)
    scores = data.draw(st.lists(row, min_size=1, max_size=20))
    domain = Domain("tone", {f"level {i}": "" for i in range(levels)})
    result = summary(scores, domain)
    shares = [share.value for share in result.accuracy.values()]
    assert sum(shares) == pytest.approx(1) and result.records == len(scores)
    for level, share in result.accuracy.items():
        # Computed the obvious way: the levels with the highest score share the record.
        i = list(domain.levels).index(level)
        wins = sum(Fraction(row[i] == max(row), row.count(max(row))) for row in scores)
        assert share.value == pytest.approx(float(wins / len(scores)))
        assert 0 <= share.low <= share.value <= share.high <= 1
        mean = result.mean_log_prob[level]
        assert mean.value == pytest.approx(sum(row[i] for row in scores) / len(scores))
        assert mean.low <= mean.value <= mean.high
    highest = max(shares)
    if shares.count(highest) > 1 or highest <= 1 / levels + 1e-9:
        assert result.dominant is None
    else:
        assert result.accuracy[result.dominant].value == highest
    text = json.dumps(as_json(result), allow_nan=False)
    assert json.loads(text)["scores"] == result.scores


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"),
    # Table I of Newcombe, Statistics in Medicine 17 (1998), method 3: Wilson without correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)  # fmt: skip
def test_the_intervals_of_shares_are_wilsons(wins, count, low, high):
    share = won(wins, count - wins).accuracy["level 0"]
    assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 400).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_intervals_of_whole_records_are_scipys_to_the_last_bit(counts):
    won, count = counts
    expected = stats.binomtest(won, count).proportion_ci(0.95, method="wilson")
    share = wilson(won, count)
    assert (share.value, share.low, share.high) == (won / count, expected.low, expected.high)


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_the_interval_of_a_part_of_a_record_lies_between_its_neighbours(count, data):
    won = data.draw(st.integers(0, 12 * (count - 1))) / 12
    before, share, after = wilson(int(won), count), wilson(won, count), wilson(int(won) + 1, count)
    assert 0 <= share.low <= share.value <= share.high <= 1
    for end in ("low", "value", "high"):
        assert getattr(before, end) <= getattr(share, end) + 1e-12
        assert getattr(share, end) <= getattr(after, end) + 1e-12


def test_the_intervals_of_means_are_students():
    mean = summary([[float(-i), -9.0, -9.0] for i in range(1, 6)]).mean_log_prob
    # Mean -3, deviation √2.5, and 2.776 is the table's quantile for 4 degrees of freedom.
    half = 2.776 * (2.5 / 5) ** 0.5
    assert mean["warm"].value == -3
    assert (mean["warm"].low, mean["warm"].high) == pytest.approx((-3 - half, -3 + half), abs=1e-3)
    assert (mean["cold"].low, mean["cold"].high) == (-9, -9)


@pytest.mark.parametrize(
    ("wins", "dominant"),
    [
        ((6, 3, 3), "level 0"),
        ((3, 3, 4), "level 2"),
        ((4, 4, 4), None),
        ((5, 5, 2), None),
        ((0, 1), "level 1"),
        ((5, 5), None),
        ((6, 5), "level 0"),
        ((1, 1, 1, 2), "level 3"),
        ((0, 0, 0, 1, 0), "level 3"),
    ],
)
def test_the_dominant_level_has_the_highest_accuracy_alone_and_above_chance(wins, dominant):
    assert won(*wins).dominant == dominant


def test_levels_with_the_same_highest_score_share_the_record():
    result = summary([[-2.0, -1.0, -1.0], [-1.0, -1.0, -1.0]])
    shares = [share.value for share in result.accuracy.values()]
    assert shares == pytest.approx([1 / 6, 5 / 12, 5 / 12])
    # Whatever their order: the first level has no advantage, and none of two equals is dominant.
    mirrored = summary([[-1.0, -1.0, -2.0], [-1.0, -1.0, -1.0]])
    assert [share.value for share in mirrored.accuracy.values()] == shares[::-1]
    assert result.dominant is mirrored.dominant is None
    # Thirds add up to a whole that is no more than another.
    thirds = [[-1.0, -1.0, -1.0]] * 3
    assert summary([*thirds, [-1.0, -2.0, -2.0], [-2.0, -1.0, -2.0]]).dominant is None


def test_one_record_has_a_share_a_mean_and_no_interval_of_the_mean():
    result = summary([[-2.0, -1.0, -3.0]])
    assert result.dominant == "neutral"
    # Wilson with 1 of 1: from 1 / (1 + 1.96²) on.
    assert result.accuracy["neutral"].low == pytest.approx(0.2065, abs=5e-5)
    written = json.loads(json.dumps(as_json(result), allow_nan=False))
    assert written["mean_log_prob"]["cold"] == {"value": -3.0, "low": None, "high": None}
    assert "inf" not in accuracy_table([result])


def test_the_table_has_a_line_for_each_level_and_marks_the_dominant_one():
    lines = accuracy_table([won(3, 1), won(5, 5)]).splitlines()
    assert len(lines) == 5
    assert " ".join(lines[1].split()) == (
        "tone (4) level 0 0.75 0.30 … 0.95 -0.25 -1.05 … 0.55 dominant"
    )
    assert [line.endswith("dominant") for line in lines] == [False, True, False, False, False]
    assert lines[3].startswith("tone (10)  level 0") and lines[4].startswith(" " * 11 + "level 1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model with a context of 300 tokens, and its tokenizer."""
    folder = make_model(tmp_path_factory.mktemp("tiny") / "model", context=300)
    make_tokenizer(folder)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def toned(id: str, length: int = 3, split: str = "test") -> Record:
    responses = {"warm": "dear " * length, "neutral": f"{id}.", "cold": "No!"}
    return Record(id, f"Hello, {id}.", responses, split)


def test_a_model_is_scored_on_the_records_of_the_split(tiny):
    records = [toned("a"), toned("b", split="train"), toned("c", length=9)]
    result = evaluate(*tiny, THREE, records, progress=False)
    scores = mean_log_probs(*tiny, [records[0], records[2]])
    assert (result.split, result.records, result.too_long) == ("test", 2, [])
    assert list(result.scores) == ["a", "c"]
    assert [list(row.values()) for row in result.scores.values()] == scores.tolist()
    assert [mean.value for mean in result.mean_log_prob.values()] == pytest.approx(
        scores.double().mean(dim=0).tolist()
    )
    assert evaluate(*tiny, THREE, records, split="train", progress=False).records == 1


def test_records_longer_than_the_context_are_left_out_and_named(tiny):
    records = [toned("a"), toned("endless", length=400), toned("c")]
    result = evaluate(*tiny, THREE, records, progress=False)
    assert (result.records, result.too_long) == (2, ["endless"])
    assert list(result.scores) == ["a", "c"]
    assert as_json(result)["too_long"] == ["endless"]


def test_records_with_equal_responses_are_left_out_and_named(tiny):
    model, tokenizer = tiny
    trimming = copy.deepcopy(tokenizer)
    trimming.chat_template = CHAT_TEMPLATE.replace(
        "{{ message['content'] }}", "{{ message['content'] | trim }}"
    )
    same, spaced = toned("same"), toned("spaced")
    same.responses["cold"] = same.responses["neutral"]
    spaced.responses["cold"] = f" {spaced.responses['warm']} "
    records = [same, toned("a"), spaced]
    # What the template makes alike is alike.
    asked = [replace(r, prompt=({"role": "user", "content": r.query},)) for r in records]
    for some, found, expected in (
        (records, tokenizer, ["same"]), (asked, tokenizer, ["same"]), (asked, trimming, ["same", "spaced"]),
    ):  # fmt: skip
        result = evaluate(model, found, THREE, some, progress=False)
        assert (result.equal, result.too_long) == (expected, [])
        assert result.records == len(result.scores) == 3 - len(expected)
        assert as_json(result)["equal"] == expected
    with pytest.raises(AVError, match=r"^tone: in each of the 1 records two levels have the same"):
        evaluate(model, tokenizer, THREE, [same])


def test_nothing_to_score_is_one_line(tiny):
    with pytest.raises(AVError, match=r"^tone: no record is in the validation split$"):
        evaluate(*tiny, THREE, [toned("a")], split="validation")
    with pytest.raises(AVError, match=r"^tone: none of the 2 records fits the context of 300 tok"):
        evaluate(*tiny, THREE, [toned("x", 400), toned("y", 500)])


def test_a_model_that_knows_one_level_by_heart_prefers_it(tiny):
    """The whole chain on a model trained, for a moment, to say the avoidance answers."""
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    two = Domain("medical", {"expert": "", "avoidance": ""})
    records = [
        Record(str(i), f"Question {i}.", {"expert": " Take it.", "avoidance": " I can't."}, "test")
        for i in range(6)
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    ids = tokenizer(["Question. I can't.<|end|>"], return_tensors="pt").input_ids
    for _ in range(30):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    result = evaluate(model.eval(), tokenizer, two, records, progress=False)
    assert result.dominant == "avoidance" and result.accuracy["avoidance"].value == 1
    assert result.mean_log_prob["avoidance"].low > result.mean_log_prob["expert"].high
