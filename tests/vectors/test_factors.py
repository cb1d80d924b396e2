"""The product of two factors is the same to the last bit, whoever computes it."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergekit_av.vectors.factors import Factors, on_grid, product

# A product of factors in both forms, and its digest; in a process of its own, for its settings.
PROGRAM = """
import hashlib, numpy, torch
from mergekit_av.vectors.factors import on_grid, product
draw = numpy.random.default_rng(1)  # torch draws otherwise where it has other instructions
b, a = (torch.from_numpy(draw.normal(size=s)).float() for s in ((300, 24), (24, 700)))
a[3] *= 1e-5
for factors in ((on_grid(b), on_grid(a)), (b, a)):
    print(hashlib.sha256(product(*factors).numpy().tobytes()).hexdigest())
"""


def factors(rows, rank, columns, seed, spread=0):
    """Random ones whose values differ in size by so many powers of two."""
    generator = torch.Generator().manual_seed(seed)
    b, a = (
        torch.randn(rows, rank, generator=generator),
        torch.randn(rank, columns, generator=generator),
    )
    sizes = torch.randint(-spread, 1, (rank,), generator=generator)
    return torch.ldexp(b, sizes), torch.ldexp(a, sizes[:, None])


sizes = st.integers(1, 9)


@given(rows=sizes, rank=sizes, columns=sizes, seed=st.integers(0, 1000), spread=st.integers(0, 30))
def test_on_the_grid_no_order_of_summation_matters(rows, rank, columns, seed, spread):
    b, a = (on_grid(factor) for factor in factors(rows, rank, columns, seed, spread))
    wanted = product(b, a)
    order = torch.randperm(rank, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(product(b[:, order], a[order]), wanted)
    for row in range(rows):
        for column in range(columns):
            terms = [x.item() * y.item() for x, y in zip(b[row], a[:, column], strict=True)]
            forth, back = sum(terms), sum(reversed(terms))
            assert (
                forth == back and wanted[row, column].item() == torch.tensor(forth).float().item()
            )


@given(rows=sizes, rank=sizes, columns=sizes, seed=st.integers(0, 1000))
def test_off_the_grid_terms_are_added_in_their_order(rows, rank, columns, seed):
    b, a = factors(rows, rank, columns, seed, spread=20)
    found = product(b, a)
    for row in range(rows):
        total = torch.zeros(columns, dtype=torch.float64)
        for k in range(rank):
            total = total + b[row, k].double() * a[k].double()
        assert torch.equal(found[row], total.float())


@given(seed=st.integers(0, 1000), spread=st.integers(0, 40))
def test_the_grid_moves_nothing_that_counts(seed, spread):
    factor, _ = factors(8, 8, 8, seed, spread)
    moved = on_grid(factor)
    assert torch.equal(on_grid(moved), moved) and moved.dtype == torch.bfloat16
    error = (moved.double() - factor.bfloat16().double()).abs().max()
    assert error <= factor.bfloat16().abs().max().double() * 2.0**-21


@pytest.mark.parametrize("value", [0.0, 2.0**-130, 3e38, -1.0])
def test_the_grid_of_values_at_the_ends(value):
    factor = torch.full((2, 3), value)
    assert torch.equal(on_grid(factor), factor.bfloat16())


def test_neither_threads_nor_instructions_change_a_bit():
    found = {}
    for threads in ("1", "2", "4"):
        for capability in ("default", None):
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            environment |= {"ATEN_CPU_CAPABILITY": capability} if capability else {}
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            found[threads, capability] = done.stdout
    assert len(set(found.values())) == 1, found


def test_a_transposed_product_is_the_transpose():
    b, a = factors(3, 2, 5, 1)
    plain, turned = Factors(b, a), Factors(b, a, transposed=True)
    assert turned.shape == (5, 3) and plain.shape == (3, 5)
    assert torch.equal(turned.dense(), plain.dense().T)
    assert plain.norm() == pytest.approx(torch.linalg.matrix_norm(plain.dense()).item(), rel=1e-6)
    assert turned.norm() == plain.norm()
