"""What a unit of λ moves in a vector's own domain, and how much of it elsewhere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_av.data.domain import Domain
from mergekit_av.evaluation.accuracy import Result, summarise
from mergekit_av.evaluation.specificity import specificity, spill

LEVELS = ("expert", "generic", "avoidance")


def result(domain: str, scores: np.ndarray) -> Result:
    ids = [f"{domain}-{number}" for number in range(len(scores))]
    of = Domain(domain, dict.fromkeys(LEVELS, ""))
    return summarise(of, "test", ids, torch.tensor(scores), [], [])


def moved(base: dict[str, np.ndarray], slopes: dict[str, tuple], value: float, seed: int):
    """The results of a base, and of a model whose levels have moved, each record a little otherwise."""
    rng = np.random.default_rng(seed)
    after = {}
    for domain, scores in base.items():
        noise = rng.normal(scale=0.1, size=scores.shape)
        noise -= noise.mean(axis=0)  # the means are exact
        after[domain] = scores + value * (np.array(slopes[domain]) + noise)
    return ({name: result(name, scores) for name, scores in of.items()} for of in (base, after))


SLOPE = st.tuples(*[st.floats(-2, 2)] * 3)


@settings(deadline=None, max_examples=25)
@given(own=SLOPE, other=SLOPE, value=st.sampled_from([-1.5, -1, 0.25, 1]), seed=st.integers(0, 99))
def test_effects_are_slopes_and_spill_is_the_largest_elsewhere_of_the_largest_own(
    own, other, value, seed
):
    rng = np.random.default_rng(seed)
    base = {name: rng.normal(size=(12, 3)) - 4 for name in ("medical", "legal")}
    slopes = {"medical": own, "legal": other}
    found = specificity("medical", value, *moved(base, slopes, value, seed))
    for (domain, level, worse), effect in found.effects.items():
        of = slopes[domain]
        expected = of[LEVELS.index(level)] - of[LEVELS.index(worse)]
        assert effect.value == pytest.approx(expected, abs=1e-6)
        assert effect.low < effect.value < effect.high
    largest = [max(abs(of[0] - of[1]), abs(of[1] - of[2])) for of in (own, other)]
    if largest[0] > 0.1:
        assert found.spill.value == pytest.approx(largest[1] / largest[0], abs=1e-4)
        assert found.spill.low <= found.spill.high


def test_the_interval_of_a_spill_is_that_of_other_records():
    # Of 300 vectors with a spill of 1/2, 95 % of the intervals have it in them, give or take.
    covered = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        base, after = {}, {}
        for domain, slope in (("medical", 1.0), ("legal", 0.5)):
            base[domain] = np.zeros((18, 3))
            after[domain] = rng.normal([slope, 0, 0], 0.2, size=(18, 3))
        results = ({n: result(n, scores) for n, scores in of.items()} for of in (base, after))
        found = specificity("medical", 1.0, *results).spill
        covered += found.low <= 0.5 <= found.high
    assert 265 <= covered <= 297


def test_where_nothing_can_be_compared_there_is_no_spill():
    pair = ("medical", "expert", "generic")
    assert spill({pair: 1.0}, "medical") is None
    assert spill({pair: 1.0, ("legal", "expert", "generic"): 0.5}, "tone") is None
    assert spill({pair: 0.0, ("legal", "expert", "generic"): 0.5}, "medical") is None
    assert spill({pair: -2.0, ("legal", "expert", "generic"): 0.5}, "medical") == 0.25
    scores = {"medical": np.zeros((3, 3))}
    after = {"medical": np.ones((3, 3)) * [2, 1, 0]}
    results = ({n: result(n, found) for n, found in of.items()} for of in (scores, after))
    found = specificity("medical", 1.0, *results)
    assert found.spill is None and found.effects[pair].value == pytest.approx(1)


def test_records_that_one_of_the_two_could_not_score_do_not_count():
    base = {"medical": result("medical", np.zeros((4, 3)))}
    after = {"medical": result("medical", np.array([[1.0, 0, 0]] * 3))}
    found = specificity("medical", 1.0, base, after)
    assert found.effects["medical", "expert", "generic"].value == pytest.approx(1)
