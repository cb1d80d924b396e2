import pytest
import torch
from conftest import make_model, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeping import few

from mergekit_av import AVError
from mergekit_av.evaluation.answers import Answer, write_answers
from mergekit_av.evaluation.decoding import Decoding
from mergekit_av.evaluation.fluency import (
    Fluency,
    answers_log_prob,
    fluency,
    repeated_share,
    usable_range,
)
from mergekit_av.logprobs import mean_log_probs
from mergekit_av.models import load_model, load_tokenizer
from mergekit_av.records import Record

BASE = Fluency(log_prob=-1.5, repeated=0.05, unended=0.25)
BROKEN = Fluency(log_prob=-9.0, repeated=0.9, unended=1.0)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("three words only", 0),
        ("one two three four", 0),
        ("a b c d a b c d", 1 / 5),
        ("no no no no no no no no", 4 / 5),
        ("No NO no nO\nno\tno", 2 / 3),
    ],
)
def test_the_share_of_4_grams_that_stood_there_before(text, share):
    assert repeated_share([text]) == pytest.approx(share)


@settings(deadline=None)
@given(st.lists(st.sampled_from("ab"), max_size=12), st.lists(st.sampled_from("cd"), max_size=12))
def test_repetition_is_a_share_and_grows_with_it(some, others):
    text = " ".join(some + others)
    assert 0 <= repeated_share([text]) < 1
    assert repeated_share([text, text]) >= repeated_share([text])
    if len(some + others) >= 4:
        assert repeated_share([text, text]) >= 0.5


@settings(deadline=None)
@given(st.lists(st.text("abc", min_size=1), unique=True))
def test_words_that_are_all_different_repeat_nothing(words):
    assert repeated_share([" ".join(words)]) == 0


def answered(base, records, texts, ended=True):
    model, tokenizer = load_model(base), load_tokenizer(base)
    answers = {r.id: Answer(text, ended) for r, text in zip(records, texts, strict=True)}
    return fluency(answers, answers_log_prob(model, tokenizer, records, answers))


def test_the_numbers_are_those_of_all_answers(base, tmp_path):
    _, records = few(tmp_path, test=2, validation=0)
    texts = ["Rest a day.", "no no no no no"]
    seen = answered(base, records, texts)
    assert (seen.repeated, seen.unended) == (1 / 2, 0)
    assert answered(base, records, texts, ended=False).unended == 1
    written = [
        Record(r.id, r.prompt, {"a": text}, "test") for r, text in zip(records, texts, strict=True)
    ]
    scores = mean_log_probs(load_model(base), load_tokenizer(base), written)
    assert seen.log_prob == pytest.approx(scores.mean().item())


def model_that_always_says(tmp_path, token: int):
    """Its every next token is the same one."""
    folder = make_model(tmp_path / f"says-{token}", tied=False, dtype=torch.float32)
    make_tokenizer(folder)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    with torch.no_grad():
        # Every hidden state is the vector of ones, which is read out as the one token.
        model.model.norm.weight.zero_()
        model.lm_head.weight.zero_()
        head = torch.nn.Linear(32, 600)
        head.weight.zero_(), head.bias.zero_()
        head.bias[token] = 9.0
        model.lm_head = head
    return model, tokenizer


def test_a_model_that_loops_and_one_that_says_nothing_are_told_apart(base, tmp_path):
    _, records = few(tmp_path, test=3, validation=0)
    speaker, tokenizer = load_model(base), load_tokenizer(base)
    word = tokenizer(" the")["input_ids"]
    assert len(word) == 1
    looping, _ = model_that_always_says(tmp_path, word[0])
    answers = write_answers(looping, tokenizer, records, Decoding(30), progress=False)
    assert {answer.text for answer in answers.values()} == {" ".join(["the"] * 30)}
    seen = fluency(answers, answers_log_prob(speaker, tokenizer, records, answers))
    # Three answers of 27 4-grams, all of them the same one.
    assert seen.repeated == pytest.approx(80 / 81) and seen.unended == 1
    assert not seen.holds(BASE)

    silent, _ = model_that_always_says(tmp_path, tokenizer.eos_token_id)
    answers = write_answers(silent, tokenizer, records, Decoding(30), progress=False)
    assert set(answers.values()) == {Answer("", ended=True)}
    seen = fluency(answers, answers_log_prob(speaker, tokenizer, records, answers))
    assert (seen.repeated, seen.unended) == (0, 0)


def test_fragments_are_less_probable_under_a_base_that_knows_better(base, tmp_path):
    _, records = few(tmp_path, test=2, validation=0)
    tokenizer = load_tokenizer(base)
    speaker, _ = model_that_always_says(tmp_path, tokenizer(" the")["input_ids"][0])
    answers = {r.id: Answer("the the the", True) for r in records}
    fragments = {r.id: Answer("x(] ;", True) for r in records}
    own, broken = (
        answers_log_prob(speaker, tokenizer, records, some) for some in (answers, fragments)
    )
    assert broken < own - 1


def test_an_answer_too_long_to_read_again_is_left_out(tmp_path):
    folder = make_model(tmp_path / "model", context=120)
    make_tokenizer(folder)
    _, records = few(tmp_path, test=2, validation=0)
    whole = answered(folder, records[:1], ["Rest a day."])
    both = answered(folder, records, ["Rest a day.", "\ufffd" * 100])
    assert both.log_prob == pytest.approx(whole.log_prob)
    with pytest.raises(AVError, match="no answer fits the model's context"):
        answered(folder, records, ["\ufffd" * 100] * 2)


def test_the_same_answer_to_every_query_is_repetition():
    answer = "I am a helpful assistant."
    assert repeated_share([answer]) == 0
    assert repeated_share([answer, answer, answer]) == pytest.approx(2 / 3)
    assert repeated_share([answer, "Rest a day or two."]) == 0
    assert not fluency({"a": Answer(answer, True), "b": Answer(answer, True)}, -1.5).holds(BASE)


def test_the_guard_is_relative_to_the_base():
    assert BASE.holds(BASE) and not BROKEN.holds(BASE) and BROKEN.holds(BROKEN)
    assert Fluency(-9.0, 0.05, 0.25).holds(Fluency(-8.5, 0.05, 0.25))
    assert not Fluency(-9.0, 0.05, 0.25).holds(BASE)
    assert not Fluency(-1.5, 0.9, 0.25).holds(BASE)
    assert not Fluency(-1.5, 0.05, 1.0).holds(BASE)
    assert Fluency(-0.1, 0.0, 0.0).holds(BASE)  # better is never worse


# The usable range

STATES = st.dictionaries(
    st.integers(-20, 20).map(lambda tenths: tenths / 10), st.sampled_from([BASE, BROKEN])
)


@settings(deadline=None)
@given(STATES)
def test_the_usable_range_is_the_widest_unbroken_span_around_0(states):
    measured = {**states, 0.0: BASE}
    low, high = usable_range(measured)
    assert low in measured and high in measured and low <= 0 <= high
    assert all(measured[value] == BASE for value in measured if low <= value <= high)
    above, below = [v for v in measured if v > high], [v for v in measured if v < low]
    assert not above or measured[min(above)] == BROKEN
    assert not below or measured[max(below)] == BROKEN


@settings(deadline=None)
@given(STATES)
def test_the_order_of_measuring_does_not_matter(states):
    measured = {**states, 0.0: BASE}
    assert usable_range(measured) == usable_range(dict(reversed(measured.items())))


def test_without_the_base_nothing_is_known():
    assert usable_range({}) is None and usable_range({0.5: BASE}) is None
    assert usable_range({0.0: BASE}) == (0.0, 0.0)
