"""The λ at which a vector is trained, and at which its levels are meant."""

from mergekit_av.errors import AVError


def parse_lambdas(text: str) -> tuple[float, ...]:
    """`1,-1` as numbers.

    Raises:
        AVError: one is no finite number, is 0, or stands twice; or none is 1.
    """
    try:
        lambdas = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise AVError(f"--lambdas must be numbers like 1,-1, not {text!r}") from error
    if not all(0 < abs(value) < float("inf") for value in lambdas):
        raise AVError(f"--lambdas must be finite and not 0, where the vector has no part: {text}")
    if len(set(lambdas)) < len(lambdas) or 1 not in lambdas:
        raise AVError(f"--lambdas must name each λ once, and 1 among them, not {text!r}")
    return lambdas


def meant(levels: int) -> tuple[float, ...]:
    """The λ at which each of so many levels is meant, best first: 1, then even steps from 0 to -1.

    The base is where λ is 0, after the best level: three levels are meant at 1, -1/2 and -1.
    """
    return (1.0, *(-step / (levels - 1) for step in range(1, levels)))
