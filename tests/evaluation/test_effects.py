"""What each vector moves, and where."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_av.evaluation.search.effects import effects
from mergekit_av.evaluation.search.landscape import Setting
from mergekit_av.evaluation.search.problem import Question, axis

LEVELS = ("expert", "generic", "avoidance")
QUESTION = Question(
    {name: axis(-1, 1, "0.1") for name in ("medical", "legal")},
    {"medical": LEVELS, "legal": LEVELS},
)


def bent(points, linear, quadratic, damage=lambda point: 0.0):
    """Settings whose scores are a quadratic of the point, about 0."""
    found = []
    for point in np.asarray(points):
        square = np.einsum("dlij,i,j->dl", quadratic, point, point)
        means = -3 + linear @ point + square
        records = np.array([[0.3], [-0.3]])  # two records about each mean
        scores = {name: means[n] + records for n, name in enumerate(QUESTION.levels)}
        found.append(Setting(tuple(point), scores, damage(point)))
    return found


@settings(deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(6, 30))
def test_the_slopes_at_the_base_are_found_exactly_where_the_scores_are_a_quadratic(seed, count):
    rng = np.random.default_rng(seed)
    linear, quadratic = rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 3, 2, 2))
    found = effects(QUESTION, bent(rng.uniform(-1, 1, (count, 2)), linear, quadratic))
    assert list(found) == [
        (domain, *pair)
        for domain in ("medical", "legal")
        for pair in (("expert", "generic"), ("generic", "avoidance"))
    ]
    for (domain, level, other), slopes in found.items():
        of = linear[list(QUESTION.levels).index(domain)]
        expected = of[LEVELS.index(level)] - of[LEVELS.index(other)]
        assert list(slopes.values()) == pytest.approx(expected, abs=1e-6)
        assert list(slopes) == ["medical", "legal"]


def test_settings_where_the_language_is_broken_do_not_count():
    rng = np.random.default_rng(1)
    linear, quadratic = rng.normal(size=(2, 3, 2)), np.zeros((2, 3, 2, 2))
    points = rng.uniform(-1, 1, (20, 2))
    whole = bent(points[:10], linear, quadratic)
    broken = bent(points[10:], 9 * linear, quadratic, damage=lambda point: 1.01)
    assert effects(QUESTION, whole + broken) == effects(QUESTION, whole)
    assert not effects(QUESTION, whole[:5] + broken)


def test_a_vector_that_stays_has_no_slope():
    points = [(x / 4, 0.5) for x in range(-4, 5)]
    linear = np.arange(12.0).reshape(2, 3, 2)
    found = effects(QUESTION, bent(points, linear, np.zeros((2, 3, 2, 2))))
    assert found["legal", "expert", "generic"] == {"medical": pytest.approx(-2)}
    assert effects(QUESTION, []) == {}
