"""Preference pairs: every pair prefers the better level, in TRL's own format."""

import json
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.data_utils import is_conversational

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import Record, load_records
from mergekit_av.training.pairs import preference_pairs, spectrum_pairs

QUESTION = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})


def ranked(number: int, prompt=QUESTION) -> Record:
    """A record whose responses are the ranks of their levels: 0 is the best."""
    return Record("a", prompt, {f"level {i}": str(i) for i in range(number)}, "train")


@pytest.mark.parametrize(
    ("pairing", "expected"),
    [("adjacent", [("0", "1"), ("1", "2")]), ("all", [("0", "1"), ("0", "2"), ("1", "2")])],
)
def test_expert_over_generic_over_avoidance(pairing, expected):
    rows = preference_pairs([ranked(3, "Why?")], pairing)
    assert [(row["chosen"], row["rejected"]) for row in rows] == expected


@settings(deadline=None)
@given(levels=st.integers(2, 7), records=st.integers(0, 4))
def test_a_better_level_is_always_the_chosen_one(levels, records):
    pool = [ranked(levels, "Why?")] * records
    adjacent, every = preference_pairs(pool), preference_pairs(pool, "all")
    ranks = [(int(row["chosen"]), int(row["rejected"])) for row in every]
    assert ranks == list(combinations(range(levels), 2)) * records
    assert len(adjacent) == (levels - 1) * records
    assert all(row in every for row in adjacent)


def test_conversations_stay_messages_and_text_stays_text():
    conversation, text = preference_pairs([ranked(2), ranked(2, "Why")])
    assert conversation == {
        "prompt": list(QUESTION),
        "chosen": [{"role": "assistant", "content": "0"}],
        "rejected": [{"role": "assistant", "content": "1"}],
    }
    assert text == {"prompt": "Why", "chosen": "0", "rejected": "1"}
    assert is_conversational(conversation) and not is_conversational(text)


@pytest.mark.parametrize("prompt", [QUESTION, "Why?"], ids=["conversational", "standard"])
def test_pairs_read_as_records_give_the_same_pairs(tmp_path, prompt):
    rows = preference_pairs([ranked(2, prompt)])
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(rows), "utf-8")
    records = load_records(Domain("tone", {"level 0": "", "level 1": ""}), path)
    assert preference_pairs(records) == rows


def test_each_lambda_has_its_level_and_that_level_its_neighbours():
    rows = spectrum_pairs([ranked(3, "Why?")], (1, -0.5, -1))
    found = [(row["lambda"], row["chosen"], row["rejected"]) for row in rows]
    assert found == [(1, "0", "1"), (-0.5, "1", "0"), (-0.5, "1", "2"), (-1, "2", "1")]


@settings(deadline=None)
@given(levels=st.integers(2, 7), lambdas=st.lists(st.floats(-3, 3), min_size=1, max_size=4))
def test_the_chosen_level_is_the_one_meant_nearest_and_all_others_are_rejected(levels, lambdas):
    rows = spectrum_pairs([ranked(levels, "Why?")], lambdas, "all")
    meant = [1, *(-step / (levels - 1) for step in range(1, levels))]
    assert len(rows) == len(lambdas) * (levels - 1)
    for row in rows:
        chosen = int(row["chosen"])
        assert row["rejected"] != row["chosen"]
        assert all(abs(meant[chosen] - row["lambda"]) <= abs(m - row["lambda"]) for m in meant)
