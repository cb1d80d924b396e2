"""The λ of a sweep, as they are typed."""

import math
from decimal import Decimal, InvalidOperation

from mergekit_av.errors import UsageError

# More values than this are a mistake in the range.
MOST = 10_000


def parse_grid(text: str) -> list[float]:
    """Parse `low:high:step`, `low:high` (the paper's step, 0.1), or values separated by commas.

    Returns:
        The values, rising, each once; `high` is among them where a step reaches it.

    Raises:
        UsageError: not numbers, an empty or reversed range, a step that is not positive, or more
            than 10,000 values.
    """
    try:  # decimal, so that -1.5 + 12 · 0.1 is -0.3 and not -0.30000000000000004
        parts = [Decimal(part) for part in text.replace(",", ":").split(":")]
        finite = all(math.isfinite(part) for part in parts)
    except (InvalidOperation, ValueError):
        finite = False
    if not finite:
        raise UsageError(f"λ must be like -1.5:1.5:0.1 or -1,0,0.5, not {text!r}")
    if ":" not in text:
        return sorted({float(part) for part in parts})
    if "," in text or len(parts) > 3:
        raise UsageError(f"λ must be like -1.5:1.5:0.1 or -1,0,0.5, not {text!r}")
    low, high, step = (*parts, Decimal("0.1"))[:3]
    if step <= 0:
        raise UsageError(f"the λ range {text} has the step {step}: it must be positive")
    if low > high:
        raise UsageError(f"the λ range {text} is reversed: write {high}:{low}:{step}")
    if (steps := (high - low) / step) >= MOST:
        raise UsageError(f"the λ range {text} has {steps:,.0f} values: take a larger step")
    return sorted({float(low + i * step) for i in range(math.floor(steps) + 1)})
