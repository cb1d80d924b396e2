"""Models that were trained for one goal, to compare a search with."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mergekit_av.errors import AVError
from mergekit_av.evaluation.accuracy import Result
from mergekit_av.evaluation.measure.cache import Cache
from mergekit_av.vectors.vector import AlignmentVector

from .workload import Workload


@dataclass(frozen=True)
class Joint:
    """The measurements of a model that was trained for one goal.

    Attributes:
        goal: what it was trained for.
        tests: domain → what was measured on the test records, at λ 1.
        seconds: its training; None where its metadata does not say.
    """

    goal: dict[str, str]
    tests: dict[str, Result]
    seconds: float | None


def open_joint(avs: Sequence[str], domains: Collection[str]) -> dict[str, AlignmentVector]:
    """Open vectors of `av-train --joint`, under names that no other vector has.

    Args:
        domains: names of those that are scored.

    Raises:
        AVError: one was not trained jointly, or for a domain that is not scored.
    """
    opened = {f"joint {number}": AlignmentVector.open(av) for number, av in enumerate(avs, 1)}
    for vector in opened.values():
        goal = (vector.metadata.training or {}).get("joint")
        if not goal:
            raise AVError(f"{vector.folder} was not trained by `av-train --joint`")
        for name in goal:
            if name not in domains:
                raise AVError(f"{vector.folder} is about {name}, which is not scored: add --domain")
    return opened


def measure_joint(
    vectors: Mapping[str, AlignmentVector], cache: Cache, workload: Workload
) -> list[Joint]:
    """Measure jointly trained vectors on the test records."""
    found = []
    for name, vector in vectors.items():
        training = vector.metadata.training or {}
        tests = {task.name: cache.result({name: 1.0}, task) for task in workload.scored}
        found.append(Joint(training["joint"], tests, training.get("seconds")))
    return found
