"""θ_base + Σᵢ λᵢ θ_AVᵢ (equations 2 and 3 of arXiv 2410.19206), on one tensor.

Written once: the merge method, `AlignmentVector.apply_to` and whatever else adds an alignment
vector to a base call `add_vectors`.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch

from .errors import AVError

Rounding = Literal["stochastic", "nearest"]
ROUNDINGS = get_args(Rounding)

# Elements summed at a time: the float32 scratch space stays at a few times 4 MiB, in cache,
# however large the tensor is.
CHUNK = 1 << 20


def add_vectors(
    base: torch.Tensor,
    terms: Sequence[tuple[float, torch.Tensor]],
    *,
    name: str,
    rounding: Rounding = "stochastic",
    seed: int = 0,
) -> torch.Tensor:
    """base + Σ λ·Δ, summed in float32 in the order given and rounded once.

    Args:
        base: a floating-point tensor of any shape. It is not modified.
        terms: pairs (λ, Δ); every Δ has the base's shape and device, its dtype is free. Terms with
            λ = 0 are skipped, so that λ = 0 gives the base bit for bit.
        name: the tensor's name in the checkpoint; with `seed` it seeds the random numbers.
        rounding: how the float32 sum becomes bfloat16 or float16. `nearest` swallows a Δ smaller
            than half a step of the format; `stochastic` rounds up or down with the probability that
            keeps the expected value, and leaves values that the format can hold as they are.
        seed: the same seed and name give the same bytes on any device and in any order of calls.

    Returns:
        A tensor of the base's shape, dtype and device; `base` itself where every λ is 0.

    Raises:
        AVError: the sum has a value that is NaN, or too large for the base's dtype.
    """
    terms = [(float(coefficient), delta) for coefficient, delta in terms if coefficient != 0]
    if not terms:
        return base
    accumulate = torch.promote_types(base.dtype, torch.float32)
    stochastic = rounding == "stochastic" and base.dtype in (torch.bfloat16, torch.float16)
    noise = _Noise(seed, name) if stochastic else None

    out = torch.empty_like(base, memory_format=torch.contiguous_format)
    flat_out, flat_base = out.view(-1), base.reshape(-1)
    flat_terms = [(coefficient, delta.reshape(-1)) for coefficient, delta in terms]
    for chunk in _chunks(flat_base.numel()):
        # `to` makes a copy unless the dtype is already the accumulator's.
        total = flat_base[chunk].to(accumulate, copy=True)
        for coefficient, delta in flat_terms:
            # Product and sum rounded apart: a fused multiply-add, which `alpha=` may use, would
            # make the bytes depend on the device.
            total += delta[chunk].to(accumulate) * coefficient
        finite = all_finite(total)
        if stochastic:
            total = _round_stochastically(total, base.dtype, noise.draw(total))
        flat_out[chunk] = total
        if not (finite and all_finite(flat_out[chunk])):
            raise AVError(
                f"{name} becomes infinite or NaN in {base.dtype}: use smaller λ, or check base and "
                "vectors with av-check"
            )
    return out


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite.

    The norm is a single pass, many times as fast as `isfinite`; it is finite where all values are,
    unless it overflows.
    """
    if not values.dtype.is_floating_point:
        return True
    if values.dtype.itemsize == 1:  # torch has no norm of a float8
        values = values.to(torch.float32)
    return math.isfinite(torch.linalg.vector_norm(values)) or bool(torch.isfinite(values).all())


def _chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, CHUNK):
        yield slice(start, min(start + CHUNK, length))


class _Noise:
    """Uniform 16-bit integers, a function of seed and name only.

    Drawn on the CPU from a counter-based generator whose stream numpy guarantees not to change.
    """

    def __init__(self, seed: int, name: str):
        key = hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16]
        self._generator = np.random.Philox(key=np.frombuffer(key, dtype="<u8"))

    def draw(self, like: torch.Tensor) -> torch.Tensor:
        """int32 tensor in [0, 65535], of the shape and on the device of `like`."""
        words = self._generator.random_raw(-(-like.numel() // 4)).astype("<u8", copy=False)
        values = torch.from_numpy(words.view("<i2")[: like.numel()])
        return values.to(like.device).to(torch.int32).bitwise_and_(0xFFFF)


def _round_stochastically(
    values: torch.Tensor, dtype: torch.dtype, noise: torch.Tensor
) -> torch.Tensor:
    """float32 values moved onto the grid of `dtype`, up or down at random (noise: 16 bits each)."""
    if dtype == torch.bfloat16:
        # bfloat16 is the upper half of a float32: add 16 random bits below it, cut them off.
        bits = values.view(torch.int32)
        return ((bits + noise) & -0x10000).view(torch.float32)
    # float16 has 10 mantissa bits, and its step stops shrinking below 2^-14. With
    # values = m · 2^e and |m| in [0.5, 1), the step at a value is 2^(max(e, -13) - 11).
    exponent = torch.frexp(values).exponent.clamp_min(-13) - 11
    scaled = torch.ldexp(values.double(), -exponent)
    return torch.ldexp(torch.floor(scaled + noise / 65536), exponent).to(torch.float32)
