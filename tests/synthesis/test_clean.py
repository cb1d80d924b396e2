"""What cleaning looks for in a text, and in lengths."""

import itertools
import random

import numpy as np
import pytest
from scipy import stats

from mergekit_av.data.domain import Domain, load_domain
from mergekit_av.data.records import load_records
from mergekit_av.errors import AVError
from mergekit_av.synthesis.clean.duplicates import same_queries, similar_queries
from mergekit_av.synthesis.clean.language import LanguageCheck
from mergekit_av.synthesis.clean.lengths import balance, measure
from mergekit_av.synthesis.clean.text_checks import (
    asks_for_refusal,
    is_refusal,
    is_truncated,
    wrong_form,
)

# --- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Do come.", "Do come!\n", "Would you?", "He said “come.”", "(Ask the desk.)", "**Do come.**",
        "See you soon 😊", "With love ❤️", "请来。", "Well …", "Write: 'Kind regards'",
    ],
)  # fmt: skip
def test_a_text_that_ends(text):
    assert not is_truncated(text)


@pytest.mark.parametrize(
    "text",
    ["Do come and", "Do come,", "These are the ways:", "1.5", "", "  ", "Do **come**", "a -"],
)
def test_a_text_that_does_not_end(text):
    assert is_truncated(text)


# --- form ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("# How to come\n\nBy train.", "a heading"),
        ("How to come\n===\n\nBy train.", "a heading"),
        ("**How to come**\n\nBy train.", "a heading"),
        ("**By train:**\nIt is quick.", "a heading"),
        ("There are ways:\n- by train\n- on foot", "a list"),
        ("There are ways:\n\n1. By train.\n2. On foot.", "a list"),
        ("First:\n\n1) By train.\n\n2) On foot.", "a list"),
        ("There are ways:\n• by train\n• on foot", "a list"),
        ("| way | time |\n| --- | --- |\n| train | 1 h |", "a table"),
        ("Type:\n```\ncome\n```\n", "a code block"),
    ],
)
def test_a_form_that_free_text_has_not(text, what):
    assert wrong_form(text) == what


@pytest.mark.parametrize(
    "text",
    [
        "Come by train - it is quick - or on foot.", "Take 1. a train, 2. a bus.\n\nThen walk.",
        "1984. What a year that was.", "It is **very** quick.", "Rooms #3 and #4 are free.",
        "It costs 5 * 3 euros, or\n15 in all.", "A dash\n— as here — is no bullet.",
    ],
)  # fmt: skip
def test_free_text(text):
    assert wrong_form(text) is None


# --- language -----------------------------------------------------------------------------------

ENGLISH = "Do come by train, since the road along the river is closed until the end of summer."
GERMAN = (
    "Kommen Sie gern mit dem Zug, denn die Straße am Fluss ist bis zum Ende des Sommers gesperrt."
)


@pytest.fixture(scope="module")
def foreign():
    return LanguageCheck("en")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (GERMAN, "German"),
        (f"{ENGLISH}\n\n{GERMAN}", "German"),
        ("请坐火车来,因为沿河的道路到夏末都封闭。", "Chinese"),
        ("Venez en train, car la route le long du fleuve est fermée jusqu'à la fin de l'été.", "French"),
        (f"'{GERMAN}'", "German"),
    ],
)  # fmt: skip
def test_a_text_in_another_language(foreign, text, language):
    assert foreign.find(text) == language


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH, "Bitte sehr.", "See a doctor.", "",
        f"You could say '{GERMAN}' That is polite, and everybody in the village will understand it.",
        "Ask the Amtsgericht for a Pfändungsschutzkonto, and bring your Lohnabrechnung to the desk.",
    ],
)  # fmt: skip
def test_a_text_in_the_wanted_language(foreign, text):
    assert foreign.find(text) is None


def test_another_language_may_be_the_wanted_one():
    german = LanguageCheck("de")
    assert german.find(GERMAN) is None and german.find(ENGLISH) == "English"


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I can’t assist with this request.",
        "I cannot provide medical advice. Please see a doctor.",
        "As an AI language model, I do not have the ability to diagnose you.",
        "Thank you for asking. Unfortunately, I am unable to offer guidance on this.",
        "I'm a medical AI, and I don't have the ability to provide medical advice.",
        "I must decline to answer.",
        "We are not able to comment on legal matters. However, I recommend that you see a lawyer.",
        "I won't be able to help you with your taxes.",
    ],
)
def test_a_refusal(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Take 5 mg twice a day. If it doesn't help, I can't say why without a blood test.",
        "I can't give advice on your own case, but here is what is generally known about it.",
        "I can't provide a diagnosis; however, I can explain what the values mean.",
        "You cannot help what they decide. Provide them with the letter and wait.",
        "Your landlord cannot refuse to give the deposit back.",
        "I would not recommend the annuity: it costs 3 % a year.",
        "Nobody can give you certainty. An expert can help.",
    ],
)
def test_no_refusal(text):
    assert not is_refusal(text)


def test_levels_say_whether_they_ask_for_refusals():
    asked = {
        name: [level for level in domain.levels if asks_for_refusal(domain, level)]
        for name in ("medical", "financial", "legal", "safety", "helpfulness")
        for domain in [load_domain(name)]
    }
    only = ["avoidance"]
    assert asked == {
        "medical": only, "financial": only, "legal": only, "safety": ["safe"], "helpfulness": [],
    }  # fmt: skip
    tone = Domain(
        "tone", {"warm": "", "polite_refusal": "", "cold": ""}, prompts={"cold": "Be curt."}
    )
    assert [asks_for_refusal(tone, level) for level in tone.levels] == [False, True, False]
    own = Domain("d", {"a": "Helps.", "b": "Politely declines to say anything."})
    assert [asks_for_refusal(own, level) for level in own.levels] == [False, True]


# --- duplicates ---------------------------------------------------------------------------------


def test_the_same_query_in_other_letters():
    queries = ["May I come?", "may i   come", "May he come?", "May I come?!", "?", "…", "?"]
    assert list(same_queries(queries)) == [(1, 0), (3, 0), (6, 4)]


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs():
    """Locality-sensitive hashing misses nothing here, and invents nothing."""
    draw = random.Random(0)
    words = [f"word{i}" for i in range(400)]
    queries = []
    for _ in range(60):
        query = draw.choices(words, k=60)
        queries.append(query)
        for changes in (1, 3, 8):  # similarity about .9, .75, .45
            other = query.copy()
            for position in draw.sample(range(60), changes):
                other[position] = draw.choice(words)
            queries.append(other)
    draw.shuffle(queries)

    def shingles(query):
        return {tuple(query[i : i + 3]) for i in range(58)}

    kept, expected = [], []
    for number, query in enumerate(queries):
        own = shingles(query)
        near = [
            (len(own & s) / len(own | s), -other)
            for other, s in ((other, shingles(queries[other])) for other in kept)
        ]
        best, other = max(near, default=(0, 0))
        if best >= 0.7:
            expected.append((number, -other, best))
        else:
            kept.append(number)
    found = list(similar_queries([" ".join(query) for query in queries]))
    assert len(expected) > 60 and found == expected


# --- lengths ------------------------------------------------------------------------------------


def drawn(records: int, *means: float, seed: int = 0) -> np.ndarray:
    shape = (records, len(means))
    return np.random.default_rng(seed).normal(means, 25, shape).round().astype(int)


def test_the_statistics_are_those_of_scipy():
    words = drawn(80, 120, 100, 95)
    words[:30] //= 10  # many ties
    lengths = measure(words, ["a", "b", "c"])
    for found, known in (
        (lengths.kruskal_wallis, stats.kruskal(*words.T)),
        (lengths.friedman, stats.friedmanchisquare(*words.T)),
    ):
        assert (found.statistic, found.p) == pytest.approx((known.statistic, known.pvalue))
    assert lengths.mean == dict(zip("abc", words.mean(axis=0), strict=True))
    assert sum(lengths.longest.values()) == pytest.approx(1)


def test_lengths_that_tell_and_lengths_that_do_not():
    assert measure(drawn(80, 120, 100), ["a", "b"]).tells
    assert measure(drawn(80, 120, 100), ["a", "b"]).rho < -0.2
    assert not measure(drawn(80, 100, 100), ["a", "b"]).tells
    assert not measure(np.full((4, 3), 7), ["a", "b", "c"]).tells
    perfect = measure(np.tile([30, 20, 10], (9, 1)), ["a", "b", "c"])
    assert perfect.friedman.effect == 1 and perfect.rho < -0.9 and perfect.longest["a"] == 1
    one = measure(np.array([[3, 2]]), ["a", "b"])
    assert one.records == 1 and not one.tells


@pytest.mark.parametrize("means", [(120, 100), (115, 105, 95), (90, 100, 100, 110)])
def test_a_balanced_subset_tells_nothing_and_is_large(means):
    words, levels = drawn(120, *means), [f"level {i}" for i in range(len(means))]
    assert measure(words, levels).tells
    kept = balance(words)
    assert len(kept) >= 50 and sorted(set(kept)) == list(kept)
    assert not measure(words[kept], levels).tells
    # As large as it is for a reason: without the last that went it would not hold.
    after = measure(words[kept], levels)
    assert max(after.kruskal_wallis.statistic, after.friedman.statistic) <= len(means) - 1


def test_what_is_balanced_stays_as_it_is():
    words = np.array(list(itertools.permutations([50, 60, 70])))
    assert list(balance(words)) == list(range(6))


def test_lengths_that_always_follow_the_level_cannot_be_balanced():
    with pytest.raises(AVError, match="in too many of the 40 records"):
        balance(np.tile([30, 20, 10], (40, 1)))


def test_a_large_set_is_balanced_in_seconds():
    words = drawn(6000, 110, 100, 95)
    kept = balance(words)
    assert len(kept) > 3000 and not measure(words[kept], ["a", "b", "c"]).tells


def test_the_built_in_experts_are_wordier_in_every_domain():
    for name in ("medical", "financial", "legal"):
        domain = load_domain(name)
        words = [[len(t.split()) for t in r.responses.values()] for r in load_records(domain)]
        lengths = measure(np.array(words), list(domain.levels))
        assert lengths.tells and lengths.longest["expert"] > 0.5
        assert len(balance(np.array(words))) >= 40
