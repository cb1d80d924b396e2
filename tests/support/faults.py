"""When the faults of the test servers happen."""

from typing import Protocol


class Fault(Protocol):
    """Of something that goes wrong with requests.

    Attributes:
        after: how many that it would meet are let through first; counted down.
        times: how often it happens, None for always; counted down.
    """

    after: int
    times: int | None


def is_due(fault: Fault) -> bool:
    """Whether a fault happens to a request that it would meet, which counts."""
    if fault.times == 0:
        return False
    if fault.after:
        fault.after -= 1
        return False
    if fault.times is not None:
        fault.times -= 1
    return True
