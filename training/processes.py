"""Steps that one of several processes takes for all of them."""

from collections.abc import Callable

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mergekit_av.errors import AVError


def in_main_process(step: Callable[[], object]) -> None:
    """Run `step` in the first process while the others wait.

    Raises:
        AVError: in the first process, where the step raised it; the others end (SystemExit), for
            they would wait for ever.
    """
    failure: list[AVError | None] = [None]
    if PartialState().is_main_process:
        try:
            step()
        except AVError as error:
            failure = [error]
    broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0] if PartialState().is_main_process else SystemExit(1)
