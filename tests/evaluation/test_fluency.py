import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeping import few
from tiny import make_model, make_tokenizer

from mergekit_av.evaluation.accuracy import summarise
from mergekit_av.evaluation.fluency import Fluency, fluency, repeated_share, usable_range
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.generation import Answer, write_answers
from mergekit_av.models.load import load_model, load_tokenizer

BASE = Fluency(held_out=-1.5, repeated=0.05, unended=0.25)
BROKEN = Fluency(held_out=-9.0, repeated=0.9, unended=1.0)


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


def scored(domain, *rows):
    """What a model with these mean log-probabilities prefers."""
    return summarise(domain, "test", [f"{i}" for i in range(len(rows))], torch.tensor(rows), [])


def test_the_numbers_are_those_of_all_answers_and_all_records(tmp_path):
    domain, _ = few(tmp_path)
    some, others = (
        scored(domain, [-3.0, -1.0, -2.0], [-4.0, -5.0, -6.0]),
        scored(domain, [-9, -8, -4.0]),
    )
    texts = ["Rest a day.", "no no no no no"]
    for ended in (True, False):
        answers = {text: Answer(text, ended) for text in texts}
        seen = fluency(answers, [some, others])
        assert (seen.repeated, seen.unended) == (1 / 2, not ended)
        assert seen.held_out == pytest.approx((-1 - 4 - 4) / 3)


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
    domain, records = few(tmp_path, test=3, validation=0)
    results, tokenizer = [scored(domain, [-1.5, -2.0, -2.0])], load_tokenizer(base)
    word = tokenizer(" the")["input_ids"]
    assert len(word) == 1
    looping, _ = model_that_always_says(tmp_path, word[0])
    answers = write_answers(looping, tokenizer, records, Decoding(30), progress=False)
    assert {answer.text for answer in answers.values()} == {" ".join(["the"] * 30)}
    seen = fluency(answers, results)
    # Three answers of 27 4-grams, all of them the same one.
    assert seen.repeated == pytest.approx(80 / 81) and seen.unended == 1
    assert not seen.holds(BASE)

    silent, _ = model_that_always_says(tmp_path, tokenizer.eos_token_id)
    answers = write_answers(silent, tokenizer, records, Decoding(30), progress=False)
    assert set(answers.values()) == {Answer("", ended=True)}
    seen = fluency(answers, results)
    assert (seen.repeated, seen.unended) == (0, 0)


def test_the_same_answer_to_every_query_is_repetition(tmp_path):
    answer = "I am a helpful assistant."
    assert repeated_share([answer]) == 0
    assert repeated_share([answer, answer, answer]) == pytest.approx(2 / 3)
    assert repeated_share([answer, "Rest a day or two."]) == 0
    result = scored(few(tmp_path)[0], [-1.5, -2.0, -2.0])
    assert not fluency(dict.fromkeys("ab", Answer(answer, True)), [result]).holds(BASE)


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
