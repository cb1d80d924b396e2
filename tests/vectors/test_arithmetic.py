import hashlib

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from mergekit_av import AVError
from mergekit_av.io.checkpoint import all_finite
from mergekit_av.vectors import arithmetic
from mergekit_av.vectors.arithmetic import add_vectors

NARROW = [torch.bfloat16, torch.float16]
FLOATS = [torch.float32, *NARROW]
quick = settings(deadline=None, max_examples=60)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    return left.dtype == right.dtype and torch.equal(left.view(bits), right.view(bits))


def on_grid(value: torch.Tensor, dtype: torch.dtype, steps: int) -> torch.Tensor:
    """The nearest value of a 16-bit format, or the one so many steps above or below it."""
    bits = value.to(dtype).view(torch.int16).int()
    rank = torch.where(bits < 0, -(1 << 15) - bits, bits) + steps
    return torch.where(rank < 0, -(1 << 15) - rank, rank).to(torch.int16).view(dtype)


def neighbours(value: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The two values of the format that enclose float32 values, twice the same where exact."""
    nearest = on_grid(value, dtype, 0)
    below = torch.where(nearest.float() <= value, nearest, on_grid(value, dtype, -1))
    above = torch.where(nearest.float() >= value, nearest, on_grid(value, dtype, 1))
    return below, above


def rounded(values: torch.Tensor, dtype: torch.dtype, seed: int = 0, name: str = "w"):
    """float32 values rounded at random: they come out of 0 + 1·values unchanged."""
    return add_vectors(torch.zeros(values.shape, dtype=dtype), [(1, values)], name=name, seed=seed)


def random_terms(count: int, shape=(7, 5), dtype=torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (coefficient, torch.randn(shape, generator=generator).to(dtype))
        for coefficient in (0.6, -1.0, 1.7, 0.3)[:count]
    ]


floats16 = st.lists(
    st.floats(-60000, 60000, width=32)
    | st.floats(-(2.0**-13), 2.0**-13, width=32)  # where float16 is subnormal
    | st.floats(-1, 1, width=16),  # what float16 can hold
    min_size=1,
    max_size=30,
).map(lambda values: torch.tensor(values, dtype=torch.float32))
integers = st.lists(st.integers(-1000, 1000), min_size=6, max_size=6).map(
    lambda values: torch.tensor(values, dtype=torch.float32)
)
quarters = st.integers(-40, 40).map(lambda value: value / 4)


@pytest.mark.parametrize("dtype", [torch.float64, *FLOATS])
@pytest.mark.parametrize("rounding", arithmetic.ROUNDINGS)
@pytest.mark.parametrize("coefficients", [[], [0], [0.0, -0.0]])
def test_without_terms_the_base_comes_back_bit_for_bit(dtype, rounding, coefficients):
    base = torch.tensor([0.0, -0.0, 1.1, -7e-6, 6e-8, 60000.0], dtype=dtype)
    terms = [(c, torch.full_like(base, torch.nan)) for c in coefficients]
    assert same_bits(add_vectors(base, terms, name="w", rounding=rounding), base)


@pytest.mark.parametrize("base_dtype", FLOATS)
@pytest.mark.parametrize("delta_dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 3, 4])
def test_nearest_is_the_float32_sum_rounded_once(base_dtype, delta_dtype, count):
    base = random_terms(1, seed=1)[0][1].to(base_dtype)
    terms = random_terms(count, dtype=delta_dtype)
    total = base.float().numpy()
    for coefficient, delta in terms:
        total = total + np.float32(coefficient) * delta.float().numpy()
    result = add_vectors(base, terms, name="w", rounding="nearest")
    assert same_bits(result, torch.from_numpy(total).to(base_dtype))
    exact = base.double() + sum(c * d.double() for c, d in terms)
    step = torch.finfo(base_dtype).eps * result.double().abs().clamp_min(1e-3)
    assert ((result.double() - exact).abs() <= 0.5001 * step + 1e-6).all()


def test_a_float64_base_is_summed_in_float64():
    base = torch.tensor([1.0], dtype=torch.float64)
    result = add_vectors(base, [(1, torch.tensor([2.0**-40]))], name="w")
    assert result.item() == 1 + 2.0**-40


@quick
@given(integers, st.lists(st.tuples(quarters, integers), min_size=1, max_size=4))
def test_sums_that_float32_can_hold_are_exact_in_any_order(base, terms):
    expected = base.double() + sum(c * d.double() for c, d in terms)
    for order in (terms, terms[::-1]):
        assert torch.equal(add_vectors(base, order, name="w").double(), expected)


@quick
@given(integers, integers, integers, quarters, quarters)
def test_the_sum_is_linear_in_coefficients_and_vectors(base, x, y, a, b):
    def add(*terms, to=base):
        return add_vectors(to, terms, name="w")

    assert torch.equal(add((a, x), (b, x)), add((a + b, x)))
    assert torch.equal(add((a, x), (a, y)), add((a, x + y)))
    assert torch.equal(add((b, y), to=add((a, x))), add((a, x), (b, y)))
    assert torch.equal(add((-a, x), to=add((a, x))), base)


@pytest.mark.parametrize("dtype", NARROW)
@quick
@given(values=floats16)
def test_nearest_rounds_as_torch_does(dtype, values):
    zero = torch.zeros(values.shape, dtype=dtype)
    result = add_vectors(zero, [(1, values)], name="w", rounding="nearest")
    assert same_bits(result, (values + 0.0).to(dtype))


@pytest.mark.parametrize("dtype", NARROW)
@quick
@given(values=floats16, seed=st.integers(0, 2**63))
def test_stochastic_rounding_gives_a_neighbour_and_keeps_exact_values(dtype, values, seed):
    result = rounded(values, dtype, seed)
    below, above = neighbours(values, dtype)
    assert ((result == below) | (result == above)).all()
    exact = values.to(dtype).float() == values
    assert torch.equal(result[exact].float(), values[exact])


@pytest.mark.parametrize("dtype", NARROW)
def test_stochastic_rounding_is_unbiased_over_seeds(dtype):
    # Normal and (for float16) subnormal numbers of both signs, at several places between two steps.
    values = torch.tensor([1.0001, -1.003, 0.7071, 300.1, -3e-5, 1.01e-6, -5.1e-8, 1e-9])
    seeds = 3000
    mean = sum(rounded(values, dtype, seed).double() for seed in range(seeds)) / seeds
    below, above = (bound.double() for bound in neighbours(values, dtype))
    up = (values.double() - below) / (above - below)
    deviation = (above - below) * (up * (1 - up) / seeds).sqrt()
    # A seed's 16 random bits cannot tell probabilities below 2^-16 apart.
    tolerance = 5 * deviation + (above - below) / 65536
    assert ((mean - values.double()).abs() <= tolerance).all()
    assert (deviation > 0).all()


def test_a_small_step_survives_stochastic_rounding_and_not_nearest():
    base = torch.ones(10_000, dtype=torch.bfloat16)
    terms = [(1, torch.full_like(base, 2.0**-10))]  # an eighth of a step
    assert torch.equal(add_vectors(base, terms, name="w", rounding="nearest"), base)
    mean = add_vectors(base, terms, name="w").float().mean().item()
    assert abs(mean - (1 + 2.0**-10)) < 1e-4


@pytest.mark.parametrize("dtype", NARROW)
def test_the_bytes_depend_on_seed_and_name_alone(dtype):
    values = random_terms(1, (50, 8))[0][1]
    first = rounded(values, dtype, seed=1, name="a")
    torch.manual_seed(5)
    rounded(values, dtype, seed=2, name="b")
    assert same_bits(rounded(values, dtype, seed=1, name="a"), first)
    assert not same_bits(rounded(values, dtype, seed=2, name="a"), first)
    assert not same_bits(rounded(values, dtype, seed=1, name="b"), first)


@pytest.mark.parametrize(
    ("dtype", "digest"),
    [(torch.bfloat16, "652dd64670278ca1"), (torch.float16, "179ca8a4ec83aa44")],
)
def test_the_bytes_stay_what_they_are(dtype, digest):
    """A recipe gives the same bytes on every machine and with every version."""
    values = torch.arange(arithmetic.CHUNK + 7).remainder(100_003) / 100_003
    result = rounded(values, dtype, seed=1, name="model.norm.weight")
    assert hashlib.sha256(result.view(torch.int16).numpy()).hexdigest()[:16] == digest


@pytest.mark.parametrize("rounding", arithmetic.ROUNDINGS)
def test_strides_change_nothing(rounding):
    base, (term,) = torch.randn(9, 6).bfloat16(), random_terms(1, (9, 6))
    expected = add_vectors(base, [term], name="w", rounding=rounding)
    strided = [(term[0], term[1].t().contiguous().t())]
    result = add_vectors(base.t().contiguous().t(), strided, name="w", rounding=rounding)
    assert same_bits(result, expected)
    assert result.is_contiguous()


@pytest.mark.parametrize("rounding", arithmetic.ROUNDINGS)
@pytest.mark.parametrize("length", [1, 7, 8, 9, 29])
def test_chunks_leave_no_seam(monkeypatch, rounding, length):
    base, terms = torch.randn(length).bfloat16(), random_terms(2, (length,))
    whole = add_vectors(base, terms, name="w", rounding=rounding)
    monkeypatch.setattr(arithmetic, "CHUNK", 8)
    assert same_bits(add_vectors(base, terms, name="w", rounding=rounding), whole)


def test_a_tensor_longer_than_a_chunk():
    length = arithmetic.CHUNK + 7
    base, terms = torch.zeros(length, dtype=torch.bfloat16), random_terms(1, (length,))
    total = terms[0][1] * 0.6
    result = add_vectors(base, terms, name="w")
    below, above = neighbours(total, torch.bfloat16)
    assert ((result == below) | (result == above)).all()
    # Chunks must not repeat one another's random numbers.
    up = result.float() > total
    assert not torch.equal(up[:7], up[arithmetic.CHUNK :])
    assert 0.49 < up.float().mean() < 0.51


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 5)])
def test_any_shape(dtype, shape):
    base = torch.ones(shape, dtype=dtype)
    result = add_vectors(base, [(0.5, torch.full(shape, 2.0))], name="w")
    assert result.shape == base.shape
    assert (result == 2).all()


def test_the_inputs_are_left_as_they_are():
    base, terms = torch.randn(40).bfloat16(), random_terms(3, (40,))
    before = [base.clone(), *(delta.clone() for _, delta in terms)]
    for rounding in arithmetic.ROUNDINGS:
        add_vectors(base, terms, name="w", rounding=rounding)
    assert all(map(torch.equal, [base, *(delta for _, delta in terms)], before))


@pytest.mark.parametrize("rounding", arithmetic.ROUNDINGS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_sum_that_is_not_finite_is_refused(rounding, bad, dtype):
    delta = torch.ones(30)
    delta[17] = bad
    with pytest.raises(AVError, match=r"layer.7 becomes infinite or NaN"):
        add_vectors(torch.ones(30, dtype=dtype), [(1, delta)], name="layer.7", rounding=rounding)


@pytest.mark.parametrize("rounding", arithmetic.ROUNDINGS)
def test_a_sum_too_large_for_the_dtype_is_refused(rounding):
    with pytest.raises(AVError, match="float16"):
        add_vectors(torch.ones(2).half(), [(1e5, torch.ones(2))], name="w", rounding=rounding)


def test_random_bits_cannot_hide_a_nan():
    # The largest NaN: adding to its bits wraps around to 0.
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    with pytest.raises(AVError, match="NaN"):
        rounded(nan, torch.bfloat16)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e4m3fn])
def test_all_finite_finds_a_bad_value_anywhere(dtype):
    for length in (1, 15, 16, 33, 100):
        values = torch.full((length,), torch.finfo(dtype).max).to(dtype)
        assert all_finite(values)
        for place in range(0, length, 7):
            broken = values.clone()
            broken[place] = torch.nan
            assert not all_finite(broken)
    assert all_finite(torch.arange(3))
