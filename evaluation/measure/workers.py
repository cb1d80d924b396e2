"""Processes that measure side by side, by Ray: on the cores or GPUs of a machine, or of several."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mergekit_av.errors import AVError
from mergekit_av.extras import require
from mergekit_av.models.chat import load_chat_tokenizer

from .engine import EngineConfig
from .requests import Measured, Request


class Workers:
    """So many engines, each in a process of its own. To be used in a `with`.

    A Ray cluster that is running (`ray start`, with RAY_ADDRESS set) is used; else Ray is started on
    this machine, and stopped at the end.

    Raises:
        AVError: Ray is not installed or does not start, there are fewer cores or GPUs than workers,
            or a worker cannot load what it measures.
    """

    def __init__(self, config: EngineConfig, count: int):
        self._ray = ray = _load_ray()
        with _as_av_error(ray):
            terminate = signal.getsignal(signal.SIGTERM)
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
            try:
                # Ray's own would end this process at once, without what it still has to say.
                if threading.current_thread() is threading.main_thread() and terminate is not None:
                    signal.signal(signal.SIGTERM, terminate)
                worker = ray.remote(_Worker).options(
                    **_share(ray.cluster_resources(), config, count)
                )
                self._workers = [worker.remote() for _ in range(count)]
                ray.get([worker.load.remote(config) for worker in self._workers])
            except BaseException:
                ray.shutdown()
                raise

    def measure(self, requests: Sequence[Request]) -> Iterator[Measured]:
        """Yield the reply to each request as it is done, in any order.

        Raises:
            AVError: what a worker raises; or a worker died.
        """
        pool = self._ray.util.ActorPool(self._workers)
        replies = pool.map_unordered(
            lambda worker, numbered: worker.measure.remote(*numbered), enumerate(requests)
        )
        for _ in requests:
            with _as_av_error(self._ray):
                reply = next(replies)
            yield reply

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self._ray.shutdown()


class _Worker:
    """The engine in the other process."""

    def load(self, config: EngineConfig) -> None:
        # Not in __init__: Ray would tell no more of an error there than that the process is gone.
        self._engine = config.load(load_chat_tokenizer(config.base))

    def measure(self, number: int, request: Request) -> Measured:
        [reply] = self._engine.measure([request])
        return replace(reply, number=number)


def _share(resources: dict[str, float], config: EngineConfig, count: int) -> dict[str, int]:
    """Return what one of the workers gets: a GPU where there are any, and its part of the cores,
    which Ray makes the number of its threads."""
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    on_gpus = gpus > 0 and config.device != "cpu"
    available, kind = (gpus, "GPUs") if on_gpus else (cores, "cores")
    if count > available:
        raise AVError(f"{count} workers need as many {kind}, and there are {available}")
    return {"num_cpus": max(1, cores // count), "num_gpus": int(on_gpus)}


def _load_ray():
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    require("workers", "ray", to="evaluate in several processes")
    import ray
    import ray.util

    return ray


@contextlib.contextmanager
def _as_av_error(ray) -> Iterator[None]:
    """Raise what goes wrong in a worker as it would be raised in this process."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AVError):
            raise AVError(error.cause.message) from error
        raise
    except ray.exceptions.RayActorError as error:
        raise AVError(
            "a worker died (out of memory?): start again, with fewer; nothing that was measured is "
            "lost"
        ) from error
