"""The best approximation of a matrix by one of low rank (Eckart–Young)."""

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from .factors import Factors


class LowRank(NamedTuple):
    """B·A, nearest to a matrix of shape (m, n) in the Frobenius norm among all of its rank.

    Attributes:
        b: float32, (m, rank).
        a: float32, (rank, n). Beyond rank min(m, n) both are zero.
        energies: float64, (min(m, n),): the squared singular values, largest first. Their sum is the
            squared norm of the matrix, that of the first `rank` the squared norm of B·A.
    """

    b: torch.Tensor
    a: torch.Tensor
    energies: torch.Tensor


def low_rank(matrix: torch.Tensor, rank: int) -> LowRank:
    """Return the truncated singular value decomposition, as a projection on the leading singular
    vectors.

    The vectors of the shorter side come from its Gram matrix in float64, which costs less than the
    whole decomposition where the other side is long. Nothing is divided by a singular value, so that
    small ones and zeros do no harm; at full rank the matrix comes back to float32 precision.

    Args:
        matrix: (m, n), in any floating-point dtype, on any device that computes in float64.
        rank: 1 or more.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    rows = matrix.double() if wide else matrix.double().T
    energies, vectors = torch.linalg.eigh(rows @ rows.T)  # rising
    leading = vectors[:, -rank:].flip(1)
    rest = leading.T @ rows
    b, a = (leading, rest) if wide else (rest.T, leading.T)
    b, a = _filled(b, a, rank)
    return LowRank(b.float(), a.float(), energies.flip(0).clamp_min(0))


def of_factors(factors: Factors, rank: int) -> LowRank:
    """Return factors as they are, filled up with zeros to a rank that is not below theirs."""
    b, a = factors.b.double(), factors.a.double()
    # B·A = Q (R_B R_Aᵀ) Pᵀ with orthonormal Q and P: the small matrix in the middle has its singular
    # values.
    values = torch.linalg.svdvals(torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T)
    b, a = _filled(b, a, rank)
    return LowRank(b.float(), a.float(), values.square())


def _filled(b: torch.Tensor, a: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    missing = max(rank - a.shape[0], 0)
    return pad(b, (0, missing)), pad(a, (0, 0, 0, missing))
