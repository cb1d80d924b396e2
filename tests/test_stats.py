"""Which level each record prefers: exactly as many votes as records, equals with equal parts."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mergekit_av.stats import votes


@given(
    st.integers(2, 7).flatmap(
        lambda levels: st.lists(
            st.lists(st.sampled_from([-3.0, -2.0, -1.0]), min_size=levels, max_size=levels),
            min_size=1, max_size=30,
        )
    )
)  # fmt: skip
def test_each_record_has_one_vote_and_equals_share_it(scores):
    expected = [
        sum(Fraction(row[level] == max(row), row.count(max(row))) for row in scores)
        for level in range(len(scores[0]))
    ]
    found = votes(np.array(scores))
    # The nearest number there is, so that equal counts are equal numbers.
    assert found.tolist() == [float(count) for count in expected]


@given(st.permutations(range(4)), st.lists(st.tuples(*[st.integers(-2, 0)] * 4), min_size=1))
def test_no_level_is_first(order, scores):
    scores = np.array(scores, dtype=float)
    assert votes(scores[:, order]).tolist() == votes(scores)[list(order)].tolist()


def test_several_settings_at_once():
    scores = np.array([[[-1.0, -2.0], [-1.0, -1.0]], [[-2.0, -1.0], [-3.0, -2.0]]])
    assert votes(scores).tolist() == [[1.5, 0.5], [0.0, 2.0]]
