"""Processes that measure side by side, by Ray: on the cores or GPUs of a machine, or of several."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence

from mergekit_av.errors import AVError
from mergekit_av.evaluation.inputs import tokenizer_of

from .engine import Setup
from .requests import Job, Measured


class Workers:
    """So many measurers, each in a process of its own. To be used in a `with`.

    A Ray cluster that is running (`ray start`, with RAY_ADDRESS set) is used; else Ray is started on
    this machine, and stopped at the end.

    Raises:
        AVError: Ray is not installed or does not start, there are fewer cores or GPUs than workers,
            or a worker cannot load what it measures.
    """

    def __init__(self, setup: Setup, count: int):
        self._ray = ray = _load_ray()
        with _as_av_error(ray):
            terminate = signal.getsignal(signal.SIGTERM)
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
            try:
                # Ray's own would end this process at once, without what it still has to say.
                if threading.current_thread() is threading.main_thread() and terminate is not None:
                    signal.signal(signal.SIGTERM, terminate)
                worker = ray.remote(_Worker).options(
                    **_share(ray.cluster_resources(), setup, count)
                )
                self._workers = [worker.remote() for _ in range(count)]
                ray.get([worker.load.remote(setup) for worker in self._workers])
            except BaseException:
                ray.shutdown()
                raise

    def measure(self, jobs: Sequence[Job]) -> Iterator[Measured]:
        """Each job as it is done, in any order.

        Raises:
            AVError: what a worker raises; or a worker died.
        """
        pool = self._ray.util.ActorPool(self._workers)
        results = pool.map_unordered(
            lambda worker, job: worker.measure.remote(*job), enumerate(jobs)
        )
        for _ in jobs:
            with _as_av_error(self._ray):
                found = next(results)
            yield found

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self._ray.shutdown()


class _Worker:
    """What runs in the other process."""

    def load(self, setup: Setup) -> None:
        # Not in __init__: Ray would tell no more of an error there than that the process is gone.
        self._measurer = setup.measurer(tokenizer_of(setup.base))

    def measure(self, number: int, job: Job) -> Measured:
        [found] = self._measurer.measure([job])
        return found._replace(number=number)


def _share(resources: dict[str, float], setup: Setup, count: int) -> dict[str, int]:
    """What one of the workers gets: a GPU where there are any, and its part of the cores, which
    Ray makes the number of its threads."""
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    on_gpus = gpus > 0 and setup.device != "cpu"
    there, kind = (gpus, "GPUs") if on_gpus else (cores, "cores")
    if count > there:
        raise AVError(f"{count} workers need as many {kind}, and there are {there}")
    return {"num_cpus": max(1, cores // count), "num_gpus": int(on_gpus)}


def _load_ray():
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.util
    except ImportError:
        raise AVError("workers need Ray: pip install 'mergekit-av[workers]'") from None
    return ray


@contextlib.contextmanager
def _as_av_error(ray) -> Iterator[None]:
    """What goes wrong in a worker as it would be said in this process."""
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
