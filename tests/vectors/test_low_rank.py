import pytest
import torch

from mergekit_av.vectors.low_rank import low_rank

SHAPES = [(6, 9), (9, 6), (7, 7), (1, 5), (5, 1)]


def random(shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_no_matrix_of_that_rank_is_nearer(shape, rank):
    matrix = random(shape)
    b, a, energies = low_rank(matrix, rank)
    singular = torch.linalg.svdvals(matrix.double())
    assert (b.shape, a.shape) == ((shape[0], rank), (rank, shape[1]))
    assert (b.dtype, a.dtype, energies.dtype) == (torch.float32, torch.float32, torch.float64)
    assert torch.allclose(energies, singular**2, rtol=1e-9, atol=1e-9)
    missing = (matrix.double() - b.double() @ a.double()).square().sum()
    assert torch.allclose(missing, (singular[rank:] ** 2).sum(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("more", [0, 4])
def test_at_full_rank_the_matrix_comes_back(shape, more):
    matrix = random(shape).bfloat16()
    b, a, _ = low_rank(matrix, min(shape) + more)
    assert torch.allclose(b @ a, matrix.float(), atol=1e-6)
    # Beyond it there is nothing.
    assert not b[:, min(shape) :].any() and not a[min(shape) :].any()


@pytest.mark.parametrize("matrix", [torch.zeros(4, 6), torch.ones(6, 4), torch.eye(3)])
def test_zeros_and_equal_singular_values_do_no_harm(matrix):
    b, a, energies = low_rank(matrix, 3)
    assert torch.allclose(b @ a, matrix, atol=1e-6)
    assert torch.isfinite(energies).all() and (energies >= 0).all()
