"""How much a stranger's file may take: time, and what it unfolds to.

A chat template is a program, a configuration says how much is to be built, and a few lines of YAML can
stand for gigabytes. Nothing of that is wrong in itself, so it is stopped at a size that no honest
file has.
"""

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mergekit_av.errors import AVError
from mergekit_av.io.yaml import every

Result = TypeVar("Result")
# Of layers, experts, heads that a configuration may ask for; which part of a key says that it does.
COUNT = 100_000
COUNTED = {
    "block",
    "blocks",
    "channels",
    "codebooks",
    "depth",
    "expert",
    "experts",
    "groups",
    "head",
    "heads",
    "labels",
    "layer",
    "layers",
    "loops",
    "stages",
}


class _TimeIsUp(BaseException):
    """Raised in a thread from outside; a BaseException, for a template may catch no others either."""


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Run `work` for a limited time, and return what it returns.

    It runs in a thread of its own, since only the main thread could have a timer.

    Raises:
        TimeoutError: it took longer, and was stopped at its next step in Python.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive() and thread.ident is not None:
        stop = ctypes.pythonapi.PyThreadState_SetAsyncExc
        stop(ctypes.c_ulong(thread.ident), ctypes.py_object(_TimeIsUp))
        raise TimeoutError(f"it takes longer than {seconds:g} seconds")
    for error in errors:
        raise error
    return results[0]


@contextlib.contextmanager
def modules_up_to(count: int) -> Iterator[None]:
    """Stop this thread's construction of a network at more than `count` modules.

    Raises:
        AVError: there would be more.
    """
    from torch.nn.modules.module import register_module_module_registration_hook

    thread, left = threading.get_ident(), count

    def registered(*_: Any) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise AVError(f"its config.json asks for more than {count:,} modules")

    hook = register_module_module_registration_hook(registered)
    try:
        yield
    finally:
        hook.remove()


def refuse_counts(config: dict, where: object) -> None:
    """Raise AVError for a configuration that asks for more layers, experts or heads than any model
    has; lists would be made of them before a single module is."""
    for key, value in every(config):
        counts = isinstance(key, str) and any(part in COUNTED for part in key.lower().split("_"))
        if counts and isinstance(value, int) and value > COUNT:
            raise AVError(f"{where} says `{key}: {value:.3g}`, which no model has")
