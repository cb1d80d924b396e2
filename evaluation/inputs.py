"""Inputs of sweeps and searches: what is configured alike, vectors, domains and their records."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mergekit_av.data.domain import Domain, built_in_domains, load_domain
from mergekit_av.data.records import Record, load_records, require_splits
from mergekit_av.errors import AVError, UsageError
from mergekit_av.evaluation.measure.cache import Identity
from mergekit_av.evaluation.measure.engine import EngineConfig
from mergekit_av.models.chat import cut_notice
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.load import default_device
from mergekit_av.vectors.arithmetic import Rounding
from mergekit_av.vectors.vector import AlignmentVector

from .accuracy import left_out
from .tasks import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Configure what sweeps and searches have in common.

    Attributes:
        avs: `[NAME=]AV` of each alignment vector, AV a folder or a Hub id.
        base: folder or Hub id; by default the default base.
        domains: names of built-in ones, or files; by default the vectors' own.
        data: domain → its records instead of its own, a file or a Hub dataset id.
        max_records: at most so many of each split.
        generate: queries of each domain to answer at each setting; 0 for none.
        decoding: how they are answered.
        rounding, seed, transfer: see `Knobs`.
        dtype, device: see `load_model`.
        command: how the report says that it was called; by default as this Python object.
    """

    avs: Sequence[str]
    base: str | None = None
    domains: Sequence[str] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    max_records: int | None = None
    generate: int
    decoding: Decoding = field(default_factory=Decoding)
    rounding: Rounding = "stochastic"
    seed: int = 0
    dtype: str
    device: str | None = None
    transfer: bool = False
    command: str | None = None

    def engine(self, base: str, vectors: Mapping[str, AlignmentVector]) -> EngineConfig:
        """Return the engine for a base, folder or Hub id, and vectors."""
        return EngineConfig(
            base,
            _folders(vectors),
            self.dtype,
            self.device or default_device(),
            self.rounding,
            self.seed,
            self.transfer,
        )

    def identity(
        self, base: str, vectors: Mapping[str, AlignmentVector], dtype: torch.dtype
    ) -> Identity:
        """Return the identity of what an engine measures.

        Args:
            base: fingerprint.
            dtype: that the model computes in.
        """
        return Identity.of(base, vectors, self.rounding, self.seed, dtype)

    def provenance(
        self, base: str, vectors: Mapping[str, AlignmentVector], identity: Identity
    ) -> dict[str, Any]:
        """Return what a report says first of how it was measured.

        Args:
            base: folder or Hub id.
        """
        return {
            "base": base,
            "base fingerprint": identity.base,
            "vectors": _folders(vectors),
            "transfer": self.transfer,
            "dtype": identity.dtype,
            "rounding": f"{self.rounding}, seed {self.seed}",
        }


def _folders(vectors: Mapping[str, AlignmentVector]) -> dict[str, str]:
    return {name: str(vector.folder) for name, vector in vectors.items()}


def open_vectors(avs: Sequence[str]) -> dict[str, AlignmentVector]:
    """Open each `[NAME=]AV`.

    Returns:
        Name → vector; its own name where none was given.

    Raises:
        UsageError: two have the same name.
        AVError: one is no alignment vector.
    """
    vectors = {}
    for av in avs:
        name, source = split_name(av)
        vector = AlignmentVector.open(source)
        name = name or vector.metadata.name
        if name in vectors:
            raise UsageError(f"two vectors are called {name!r}: write --av NAME={source}")
        vectors[name] = vector
    return vectors


def split_name(av: str) -> tuple[str, str]:
    """Split `[NAME=]AV` into the name, empty where there is none, and the source."""
    name, sign, source = av.partition("=")
    # A path may hold the sign.
    return ("", av) if not sign or "/" in name else (name, source)


def load_domains(names: Sequence[str], vectors: Collection[str]) -> list[Domain]:
    """Load the domains that are named; without any, each vector's own.

    Raises:
        UsageError: two have the same name.
        AVError: there is no such domain, or none at all.
    """
    chosen = [load_domain(name) for name in names]
    if not chosen:
        known = built_in_domains()
        chosen = [load_domain(name) for name in vectors if name in known]
    if not chosen:
        raise AVError(
            f"none of the vectors ({', '.join(vectors)}) has the name of a built-in domain: pass "
            "--domain, and the vector as NAME=AV where NAME is its domain's"
        )
    refuse_same_names(chosen)
    return chosen


def refuse_same_names(domains: Sequence[Domain]) -> None:
    """Raise UsageError where two domains have the same name."""
    if len({domain.name for domain in domains}) < len(domains):
        raise UsageError("two of the domains have the same name")


def load_all_records(
    domains: Sequence[Domain], sources: Mapping[str, str]
) -> dict[str, list[Record]]:
    """Load the records of all domains, some of which must be for testing.

    Args:
        sources: domain → file or Hub dataset id instead of its own.

    Returns:
        Domain → its records.

    Raises:
        UsageError: a source is of a domain that is not among these.
        AVError: records cannot be read, or none of a domain's is for testing.
    """
    for name in sources:
        if name not in {domain.name for domain in domains}:
            raise UsageError(f"--data names {name!r}, which is not among the domains")
    records = {domain.name: load_records(domain, sources.get(domain.name)) for domain in domains}
    for name, some in records.items():
        require_splits(some, "test", source=name)
    return records


def log_left_out(tokenizer: PreTrainedTokenizerBase, tasks: Iterable[Task]) -> None:
    """Log, once for all tasks, which records are not scored, or not as they stand in their file."""
    scored = {(task.name, task.split): task for task in tasks}.values()
    for task in scored:
        for line in left_out(f"{task.name} {task.split}", task.too_long, task.equal):
            log.warning("%s", line)
    if notice := cut_notice(tokenizer, [record for task in scored for record in task.records]):
        log.warning("%s", notice)


def check_report(file: Path, heading: str) -> None:
    """Raise AVError, before anything is measured, where a report would replace somebody's file."""
    try:
        if file.read_text("utf-8", errors="replace").startswith(heading + "\n"):
            return
    except FileNotFoundError:
        return
    except OSError as error:
        raise AVError(f"cannot read {file}: {error.strerror}") from error
    raise AVError(f"{file} is somebody's own, and a report would be there: choose another folder")
