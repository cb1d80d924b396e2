"""θ_base + Σᵢ λᵢ θ_AVᵢ (equations 2 and 3 of arXiv 2410.19206), on one tensor.

Written once: the merge method, `AlignmentVector.apply_to`, `Knobs` and whatever else adds an
alignment vector to a base call `add_vectors`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch

from mergekit_av.errors import AVError

Rounding = Literal["stochastic", "nearest"]
ROUNDINGS = get_args(Rounding)
# Elements summed at a time: the float32 scratch space stays at a few times 4 MiB, in cache,
# however large the tensor is.
CHUNK = 1 << 20
# Length of the noise table: a prime, so that no two rows of a matrix use the same stretch of it.
NOISE = 4_194_301


def add_vectors(
    base: torch.Tensor,
    terms: Sequence[tuple[float, torch.Tensor]],
    *,
    name: str,
    rounding: Rounding = "stochastic",
    seed: int = 0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return base + Σ λ·Δ, summed in float32 in the order given and rounded once.

    Args:
        base: a floating-point tensor of any shape. It is not modified.
        terms: pairs (λ, Δ); every Δ has the base's shape and device, its dtype is free. Terms with
            λ = 0 are skipped, so that λ = 0 gives the base bit for bit.
        name: the tensor's name in the checkpoint; with `seed` it chooses the random numbers.
        rounding: how the float32 sum becomes bfloat16 or float16. `nearest` swallows a Δ smaller
            than half a step of the format; `stochastic` rounds up or down with the probability that
            keeps the expected value, and leaves values that the format can hold as they are.
        seed: the same seed and name give the same bytes on any device and in any order of calls.
        out: a contiguous tensor of the base's shape, dtype and device to write the sum to, which
            shares no memory with the inputs. When an error is raised its content is undefined.

    Returns:
        A tensor of the base's shape, dtype and device: `out` where it is given; else `base` itself
        where every λ is 0, and a new one where not.

    Raises:
        AVError: the sum has a value that is NaN, or too large for the base's dtype; there is no
            such rounding.
    """
    check_rounding(rounding)
    terms = [(float(coefficient), delta) for coefficient, delta in terms if coefficient != 0]
    if not terms:
        return base if out is None else out.copy_(base)
    if out is None:
        out = torch.empty_like(base, memory_format=torch.contiguous_format)
    accumulate = torch.promote_types(base.dtype, torch.float32)
    noise = None
    if rounding == "stochastic" and base.dtype in (torch.bfloat16, torch.float16):
        noise = _noise_from(seed, name, base.device)

    flat_out, flat_base = out.view(-1), base.reshape(-1)
    flat_terms = [(coefficient, delta.reshape(-1)) for coefficient, delta in terms]
    length = flat_base.numel()
    totals, products = torch.empty(
        (2, min(length, CHUNK)), dtype=accumulate, device=base.device
    ).unbind()
    extremes = []
    for chunk in _chunks(length):
        total = totals[: chunk.stop - chunk.start].copy_(flat_base[chunk])
        product = products[: chunk.stop - chunk.start]
        for coefficient, delta in flat_terms:
            # Product and sum rounded apart: a fused multiply-add, which `alpha=` may use, would
            # make the bytes depend on the device.
            total += product.copy_(delta[chunk]).mul_(coefficient)
        extremes.extend(torch.aminmax(total))
        if noise is not None:
            _round_stochastically(total, base.dtype, noise(chunk))
        flat_out[chunk] = total
    # Asked once a tensor, as an accelerator must be waited for. Rounding stays below the limit.
    if extremes and not torch.stack(extremes).abs().max() <= torch.finfo(base.dtype).max:
        raise AVError(
            f"{name} becomes infinite or NaN in {base.dtype}: use smaller λ, or check base and "
            "vectors with av-check"
        )
    return out


def check_rounding(rounding: str) -> None:
    """Raise AVError for a word that is no way of rounding."""
    if rounding not in ROUNDINGS:
        raise AVError(f"`rounding` must be one of {', '.join(ROUNDINGS)}, not {rounding!r}")


def _chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, CHUNK):
        yield slice(start, min(start + CHUNK, length))


def _noise_from(seed: int, name: str, device: torch.device):
    """Return a function from a chunk to its random integers: a stretch of the noise table that begins
    where `seed` and `name` say.

    Weights that share an entry are far apart, so each is rounded as if the numbers were its own.
    """
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    start, table = int.from_bytes(digest[:8], "little"), _noise_table(device)

    def noise(chunk: slice) -> torch.Tensor:
        first = (start + chunk.start) % NOISE
        return table[first : first + chunk.stop - chunk.start]

    return noise


@cache
def _noise_table(device: torch.device) -> torch.Tensor:
    """Return random int32, uniform in 0 … 65535, shape (NOISE + CHUNK,); its beginning stands once more after its end.

    Drawn from a counter-based generator whose stream numpy guarantees not to change.
    """
    words = np.random.Philox(key=0).random_raw(-(-NOISE // 4)).astype("<u8", copy=False)
    values = words.view("<u2")[:NOISE].astype(np.int32)
    return torch.from_numpy(np.concatenate([values, values[:CHUNK]])).to(device)


def _round_stochastically(values: torch.Tensor, dtype: torch.dtype, noise: torch.Tensor) -> None:
    """Move float32 values onto the grid of `dtype`, up or down at random, in place."""
    if dtype == torch.bfloat16:
        # bfloat16 is the upper half of a float32: add 16 random bits below it, cut them off.
        values.view(torch.int32).add_(noise).bitwise_and_(-0x10000)
        return
    # float16 has 10 mantissa bits, and its step stops shrinking below 2^-14. With
    # values = m · 2^e and |m| in [0.5, 1), the step at a value is 2^(max(e, -13) - 11).
    exponent = torch.frexp(values).exponent.clamp_min(-13) - 11
    scaled = torch.ldexp(values.double(), -exponent)
    values.copy_(torch.ldexp(torch.floor(scaled + noise / 65536), exponent))
