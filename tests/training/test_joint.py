"""Joint training: one model for one level in each of several domains."""

import json

import pytest
from training_runs import av_train, training, write_domain

from mergekit_av import AVError
from mergekit_av.data.domain import load_domain
from mergekit_av.data.records import Record, load_records
from mergekit_av.training.joint import joint_domain, parse_goal, wanted_first
from mergekit_av.training.pairs import preference_pairs


def test_a_goal_is_read_as_it_is_typed():
    goal, domains = parse_goal("medical=avoidance, financial=generic,legal=expert")
    assert goal == {"medical": "avoidance", "financial": "generic", "legal": "expert"}
    assert [domain.name for domain in domains] == list(goal)
    name = joint_domain(goal).name
    assert name == "medical-avoidance+financial-generic+legal-expert"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("medical", "--joint must be like medical=avoidance,legal=expert, not 'medical'"),
        ("medical=expert,", "--joint must be like"),
        ("medical=", "--joint must be like"),
        ("medical=expert,medical=generic", "--joint names medical twice"),
        ("medical=bold", "medical has no level 'bold': there are expert, generic, avoidance"),
        ("cooking=expert", "no domain 'cooking'"),
    ],
)
def test_what_is_no_goal_is_refused(text, says):
    with pytest.raises(AVError, match=says):
        parse_goal(text)


@pytest.mark.parametrize("level", ["expert", "generic", "avoidance"])
def test_the_wanted_level_is_preferred_over_each_other(level):
    record = Record("1", "What?", {"expert": "e", "generic": "g", "avoidance": "a"}, "train")
    [ordered] = wanted_first([record], "medical", level)
    assert ordered.id == "medical/1" and ordered.split == "train"
    pairs = preference_pairs([ordered], "first")
    others = {"e", "g", "a"} - {level[0]}
    assert {pair["chosen"] for pair in pairs} == {level[0]}
    assert {pair["rejected"] for pair in pairs} == others and len(pairs) == 2


def test_records_of_all_domains_keep_their_split_and_get_ids_of_their_own():
    domain = load_domain("medical")
    records = load_records(domain)
    ordered = wanted_first(records, "medical", "generic") + wanted_first(records, "legal", "expert")
    assert len({record.id for record in ordered}) == len(ordered) == 2 * len(records)
    assert [record.split for record in ordered] == 2 * [record.split for record in records]


def test_one_vector_is_trained_for_the_combination(base, tmp_path):
    tone = write_domain(tmp_path, "tone", train=4, validation=2)
    manners = write_domain(tmp_path, "manners", train=4, validation=2, of="friend")
    ended = av_train(
        tmp_path, "--joint", f"{tone.name}=cold,{manners.name}=warm", "--base", base,
        "--learning_rate", "1e-3",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    vector = tmp_path / "avs" / "tone-cold+manners-warm"
    about = training(vector)
    assert about["joint"] == {"tone": "cold", "manners": "warm"}
    assert about["records"] == 8 and about["pairs"] == "first" and about["steps"] == 4
    assert 0 < about["seconds"] < 300
    assert json.loads((vector / "alignment_vector.json").read_text("utf-8"))["levels"] == []


def test_either_domains_or_a_combination(tmp_path):
    for options in ([], ["--domain", "medical", "--joint", "legal=expert"]):
        ended = av_train(tmp_path, *options)
        assert ended.code == 2 and ended.error == (
            "Error: say what to train on: --domain, or --joint"
        )
    ended = av_train(tmp_path, "--joint", "legal=expert", "--data", "x.jsonl")
    assert ended.code == 2 and "--data and --out go with exactly one --domain" in ended.error
