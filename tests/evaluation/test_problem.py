"""What is asked of coefficients, and which of two settings is the better answer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import LEVELS, World

from mergekit_av import AVError
from mergekit_av.data.domain import load_domain
from mergekit_av.evaluation.accuracy import summarise
from mergekit_av.evaluation.search.landscape import Landscape, Setting, obstacles
from mergekit_av.evaluation.search.outcome import share_margin
from mergekit_av.evaluation.search.problem import Question, axis, combinations

QUESTION = Question({"a": axis(-1, 1, 1)}, {"medical": LEVELS})
GOAL = {"medical": "generic"}


def setting(value: float, *rows: tuple[float, float, float], damage: float = 0.0) -> Setting:
    return Setting((value,), {"medical": np.array(rows)}, damage)


def seen(*some: Setting) -> Landscape:
    return Landscape.seen(QUESTION, some)


def test_a_lattice_that_memory_could_not_hold_is_refused_before_it_is_made():
    with pytest.raises(AVError, match="40,000,000 multiples of 1e-7: take a larger step"):
        axis("-2", "2", "1e-7")
    fine = axis(-2, 2, "0.001")
    with pytest.raises(AVError, match="take a larger step or smaller ranges"):
        Question({"a": fine, "b": fine, "c": fine}, {"medical": LEVELS}).lattice()


@pytest.mark.parametrize(
    ("low", "high", "step", "values"),
    [
        (-1, 1, 1, (-1, 0, 1)),
        ("-0.3", "0.3", "0.1", (-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3)),
        ("-0.25", "0.25", "0.1", (-0.2, -0.1, 0, 0.1, 0.2)),  # 0 is on every lattice around it
        ("0.05", "0.35", "0.1", (0.1, 0.2, 0.3)),
        (0, 0, "0.1", (0,)),
    ],
)
def test_an_axis_has_the_multiples_of_its_step(low, high, step, values):
    assert axis(low, high, step) == values
    assert not any(np.signbit(value) for value in axis(low, high, step) if value == 0)


@pytest.mark.parametrize(
    ("low", "high", "step", "says"),
    [
        (1, -1, "0.1", "no multiple of 0.1 lies from 1 to -1"),
        ("0.11", "0.19", "0.1", "no multiple"),
        (0, 1, 0, "the step 0 must be positive"),
        (0, 1, -1, "the step -1 must be positive"),
    ],
)
def test_an_axis_without_values_is_refused(low, high, step, says):
    with pytest.raises(AVError, match=says):
        axis(low, high, step)


def test_the_lattice_is_the_product_of_its_axes():
    question = Question({"a": axis(-1, 1, 1), "b": axis(0, 1, "0.5")}, {"medical": LEVELS})
    assert question.size == len(question.lattice()) == len(set(question.lattice())) == 9
    assert (-1.0, 0.5) in question.lattice()
    assert question.setting((-1.0, 0.5)) == {"a": -1.0, "b": 0.5}
    assert Question({str(i): axis(-2, 2, "0.1") for i in range(30)}, {}).size == 41**30


def test_there_are_p_to_the_d_combinations():
    found = combinations({"a": LEVELS, "b": LEVELS, "c": ("safe", "unsafe")})
    assert len(found) == len({tuple(goal.items()) for goal in found}) == 18
    assert {"a": "generic", "b": "expert", "c": "unsafe"} in found


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.floats(-9, 0)] * 3), min_size=1, max_size=7))
def test_margins_are_those_of_preference_accuracy(rows):
    landscape = seen(setting(0, *rows))
    domain = load_domain("medical")
    # In double precision both times: a float32 may make two scores equal that were not.
    result = summarise(
        domain, "test", [str(i) for i in range(len(rows))], torch.tensor(rows, dtype=torch.float64)
    )
    for level in LEVELS:
        [margin] = landscape.margins["medical", level]
        assert margin == pytest.approx(share_margin(result, level))
        assert (margin > 0) == (result.dominant == level)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.floats(-9, 0)] * 3), min_size=1, max_size=7), st.floats(-3, 3))
def test_smoothed_margins_see_differences_only_and_agree_where_votes_are_clear(rows, shift):
    one, other = seen(setting(0, *rows)), seen(setting(0, *(np.array(rows) + shift)))
    for level in LEVELS:
        key = "medical", level
        assert one.smooth[key] == pytest.approx(other.smooth[key], abs=1e-9)
        assert -1 <= one.smooth[key][0] <= 1
    clear = seen(setting(0, *(np.round(np.array(rows)) * 100 + np.arange(3) * -30)))
    for key, margin in clear.margins.items():
        assert clear.smooth[key] == pytest.approx(margin, abs=1e-6)


def test_a_goal_is_met_where_its_levels_are_dominant_and_the_language_holds():
    generic, expert, tie = (-2, -1, -3), (-1, -2, -3), (-1, -1, -3)
    landscape = seen(
        setting(-1, generic, generic, expert),
        setting(0, generic, expert, (-3, -2, -1)),
        setting(1, generic, generic, generic, damage=1.01),
        setting(1, tie, tie, tie),
    )
    assert landscape.met(QUESTION, GOAL).tolist() == [True, False, False, False]
    # Two levels that share each record lead one another by nothing.
    assert landscape.worst(GOAL).tolist() == pytest.approx([1 / 3, 0, 1, 0])
    patient = Question(QUESTION.axes, QUESTION.levels, tolerance=2)
    assert landscape.met(patient, GOAL).tolist() == [True, False, True, False]


def test_of_two_answers_the_better_one_has_the_higher_value():
    generic, barely, expert = (-2, -1, -3), (-1.05, -1, -3), (-1, -2, -3)
    better_first = [
        setting(0, generic),  # met, clearly, by no change
        setting(1, generic),  # met by a change
        setting(0, barely),  # met, barely
        setting(0, (-1, -1.01, -3)),  # nearly met
        setting(0, expert),  # far from it
        setting(0, generic, damage=1.5),  # met in broken language
        setting(0, generic, damage=4.0),  # in language still more broken
    ]
    values = seen(*better_first).value(QUESTION, GOAL)
    assert values.tolist() == sorted(values, reverse=True) and len(set(values)) == len(values)
    met = seen(*better_first).met(QUESTION, GOAL)
    assert met.tolist() == [True] * 3 + [False] * 4
    assert (values > 1.5).tolist() == met.tolist() and (values < -2).tolist() == [False] * 5 + [
        True
    ] * 2


def test_what_stands_in_the_way_is_named():
    levels = {"medical": LEVELS, "legal": LEVELS}
    question = Question({"a": axis(-1, 1, 1)}, levels)
    expert, generic = np.array([[-1.0, -2, -3]]), np.array([[-2.0, -1, -3]])

    def landscape(*pairs, damage=0.0):
        some = [
            Setting((0.0,), {"medical": medical, "legal": legal}, damage)
            for medical, legal in pairs
        ]
        return Landscape.seen(question, some)

    both = {"medical": "expert", "legal": "generic"}
    assert obstacles(question, both, landscape((expert, expert), (expert, expert))) == [
        "generic is dominant in legal at none of the 2 settings tried"
    ]
    [text] = obstacles(question, both, landscape((expert, expert), (generic, generic)))
    assert text.startswith("medical expert and legal generic are dominant at some settings each")
    [text] = obstacles(question, both, landscape((expert, generic), damage=2))
    assert text == "the language is broken at each of the 1 settings tried"


def test_three_wishes_that_only_fit_in_pairs():
    world = World(3, records=1)
    expert, generic = np.array([[-1.0, -2, -3]]), np.array([[-2.0, -1, -3]])
    goal = {"d0": "expert", "d1": "expert", "d2": "expert"}
    some = [
        Setting((0.0,) * 3, {f"d{i}": generic if i == spoilt else expert for i in range(3)})
        for spoilt in range(3)
    ]
    [text] = obstacles(world.question, goal, Landscape.seen(world.question, some))
    assert text == "any two of the wishes are met at some setting, all at none of the 3 tried"
