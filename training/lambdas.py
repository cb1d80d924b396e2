"""The λ at which a vector is trained, and at which its levels are meant."""

from collections.abc import Sequence

from mergekit_av.errors import AVError


def parse_lambdas(text: str) -> tuple[float, ...]:
    """Return the numbers that `1,-1` lists.

    Raises:
        AVError: one is no number; see `check_lambdas`.
    """
    try:
        lambdas = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise AVError(f"--lambdas must be numbers like 1,-1, not {text!r}") from error
    check_lambdas(lambdas, text)
    return lambdas


def check_lambdas(lambdas: Sequence[float], typed: str | None = None) -> None:
    """Raise AVError where a λ is 0, not finite or there twice, or where none is 1.

    Args:
        typed: how they were written, for the message.
    """
    text = typed or ",".join(f"{value:g}" for value in lambdas)
    if not all(0 < abs(value) < float("inf") for value in lambdas):
        raise AVError(f"--lambdas must be finite and not 0, where the vector has no part: {text}")
    if len(set(lambdas)) < len(lambdas) or 1 not in lambdas:
        raise AVError(f"--lambdas must name each λ once, and 1 among them, not {text!r}")


def meant(levels: int) -> tuple[float, ...]:
    """Return the λ at which each of so many levels is meant, best first: 1, then even steps from 0
    to -1.

    The base is where λ is 0, after the best level: three levels are meant at 1, -1/2 and -1.
    """
    return (1.0, *(-step / (levels - 1) for step in range(1, levels)))
