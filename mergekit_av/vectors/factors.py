"""A difference of low rank: two factors, and their product, the same to the last bit everywhere.

A product of matrices is summed in another order by each library and on each device, and its last bits
differ, so that the bytes of a merge would. Factors in bfloat16 are kept on a grid instead, on which
float64 sums their products without rounding at all, in whatever order. Of others, the products are
added one after another.
"""

from typing import NamedTuple

import torch

from mergekit_av.io.checkpoint import BLOCK

# A factor's values are whole multiples of 2^-GRID of the power of two at or below its largest one: less than
# bfloat16, whose step there is 2^-7, can tell.
GRID = 20
# Below 2^(GRID + 1) steps in each factor, so many products fit into the 53 bits of float64.
LARGEST_EXACT_RANK = 1 << (53 - 2 * (GRID + 1))


class Factors(NamedTuple):
    """The difference of one linear layer's weight, B·A.

    Attributes:
        b: (rows, rank), float32 or bfloat16.
        a: (rank, columns), of the same dtype.
        transposed: whether the weight is (columns, rows), as GPT-2's layers have it.
    """

    b: torch.Tensor
    a: torch.Tensor
    transposed: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        shape = (self.b.shape[0], self.a.shape[1])
        return shape[::-1] if self.transposed else shape

    def dense(self) -> torch.Tensor:
        """Return the difference: float32, in the weight's shape, on the factors' device."""
        found = product(self.b, self.a)
        return found.T.contiguous() if self.transposed else found

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Factors":
        """Return copies of the factors in another dtype, those in bfloat16 on the grid."""
        b, a = (_rounded(factor, dtype or factor.dtype).to(device) for factor in (self.b, self.a))
        return Factors(b, a, self.transposed)

    def norm(self) -> float:
        """Return the Frobenius norm of the difference, without making it."""
        b, a = self.b.double(), self.a.double()
        return max(((b.T @ b) * (a @ a.T)).sum().item(), 0.0) ** 0.5


def product(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Return B·A in float32: summed in float64, and rounded once.

    The same bits on any device, with any number of threads: where all sums are exact, by the library;
    else term by term. Memory beside the result: its double, in float64.

    Args:
        b, a: (rows, rank) and (rank, columns), floating-point. On a device without float64 they are
            multiplied on the CPU.
    """
    device = b.device
    if device.type == "mps":
        b, a = b.cpu(), a.cpu()
    if b.shape[1] <= LARGEST_EXACT_RANK and _is_on_grid(b) and _is_on_grid(a):
        return (b.double() @ a.double()).float().to(device)
    return _in_order(b.double(), a.double()).to(device)


def on_grid(factor: torch.Tensor) -> torch.Tensor:
    """Return a factor in bfloat16, its small values rounded to the grid: `product` sums exactly.

    Beyond the rounding to bfloat16 a value changes by at most 2^-21 of the factor's largest one.
    """
    rounded = factor.to(torch.bfloat16)
    step = _step(rounded)
    if step is None:
        return rounded
    # Of at most 8 bits above the step, as the value itself had: bfloat16 holds the result.
    return (torch.round(rounded.double() / step) * step).to(torch.bfloat16)


def _rounded(factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.bfloat16 and factor.dtype != dtype:
        return on_grid(factor)
    return factor.to(dtype)


def _is_on_grid(factor: torch.Tensor) -> bool:
    step = _step(factor)
    if step is None:
        return True
    steps = factor.double() / step
    return bool((steps == torch.round(steps)).all())


def _step(factor: torch.Tensor) -> float | None:
    """Return the grid's step, a power of two; None where all values are zero."""
    largest = factor.abs().max().double() if factor.numel() else torch.zeros(())
    if largest == 0 or not largest.isfinite():
        return None
    return 2.0 ** (torch.frexp(largest).exponent.item() - 1 - GRID)


def _in_order(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Return B·A in float32, its float64 products added in the order of the rank.

    Product and sum are rounded apart: a fused multiply-add would depend on the device. A few rows at a
    time, so that the sums stay in cache.
    """
    (rows, rank), columns = b.shape, a.shape[1]
    out = torch.empty((rows, columns), dtype=torch.float32, device=b.device)
    count = max(1, BLOCK // 8 // max(columns, 1))
    for start in range(0, rows, count):
        part = b[start : start + count]
        total = torch.zeros((len(part), columns), dtype=torch.float64, device=b.device)
        term = torch.empty_like(total)
        for k in range(rank):
            total += torch.mul(part[:, k : k + 1], a[k], out=term)
        out[start : start + count] = total
    return out
