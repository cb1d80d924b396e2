"""What the benchmarks share: sides that take turns, ratios with their spread, peak memory.

Every round runs each side once, in an order that rotates, so that whatever else the machine does
meets all sides alike; ratios are taken within a round. Linux only: memory is read from /proc.
"""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("mergekit-av", "mergekit", "torch", "transformers", "safetensors", "pydantic")
SAMPLE_SECONDS = 0.005
MEGABYTE = 1e6


@dataclass(frozen=True)
class Run:
    """Wall time in seconds; where it was measured, peak resident memory in bytes."""

    seconds: float
    peak: int = 0


def run_command(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Time and peak memory of a program from its start to its end; it must succeed."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    )
    with PeakMemory(process.pid) as memory:
        output, _ = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{output}")
    return Run(seconds, memory.resident)


def interleaved(sides: Mapping[str, Callable[[], Run]], repeat: int) -> dict[str, list[Run]]:
    """Run each side once unmeasured, then `repeat` times in turns.

    What one side has written reaches the disk before the next one starts.
    """
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    names = list(sides)
    for round_number in range(repeat + 1):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            os.sync()
            run = sides[name]()
            if round_number:
                runs[name].append(run)
    return runs


class PeakMemory:
    """Peak memory of a process while a block runs, in bytes.

    Attributes:
        resident: all pages in memory, mapped files among them, as the kernel recorded it (VmHWM).
        anonymous: without the mapped files, which the kernel can drop; the largest sample.
    """

    def __init__(self, pid: int):
        self.resident = self.anonymous = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._sample()
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        memory = process_memory(self._pid)
        self.resident = max(self.resident, memory.get("VmHWM", 0))
        self.anonymous = max(self.anonymous, memory.get("RssAnon", 0))


def process_memory(pid: int) -> dict[str, int]:
    """The kernel's figures (VmHWM, VmRSS, RssAnon, …) in bytes; empty once the process has ended.

    Not `ru_maxrss`: a child's starts at the peak of the process that started it.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {key.rstrip(":"): int(value) * 1024 for key, value, _ in fields}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """One ratio a round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and in brackets the smallest and the largest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def verdict(values: Sequence[float], target: float) -> str:
    met = statistics.median(values) <= target
    return f"target ≤ {target:g}: {'met' if met else 'missed'}"


def machine() -> str:
    """CPU, cores, system and the versions that matter."""
    cpuinfo = Path("/proc/cpuinfo").read_text("utf-8")
    models = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if "model name" in line]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    cores = len(os.sched_getaffinity(0))
    return (
        f"machine: {models[0] if models else platform.machine()}, {cores} cores, "
        f"{platform.system()} {platform.release()}\n"
        f"python {platform.python_version()}, {versions}"
    )
