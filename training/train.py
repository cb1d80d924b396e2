"""The workflow of `av-train`: from a configuration to alignment vectors."""

import contextlib
import functools
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergekit_av.data.domain import Domain, load_domain
from mergekit_av.data.records import Record, dataset_of, load_records, require_splits
from mergekit_av.errors import AVError, UsageError
from mergekit_av.hub.upload import check_access
from mergekit_av.models.default_base import DEFAULT_BASE, base_or_default
from mergekit_av.vectors.vector import AlignmentVector

from .arguments import training_arguments
from .base import load_base
from .config import TrainConfig
from .job import Job
from .joint import joint_domain, parse_goal, wanted_first
from .lambda_selection import select_lambdas
from .processes import in_main_process
from .settings import HOLD, PAIRING
from .train_job import train_job

RUNS, VECTORS = Path("runs"), Path("avs")


@dataclass(frozen=True)
class Trained:
    """Hold what a call of `train` made.

    Attributes:
        vectors: one of each domain; none in all processes but the first.
        commit: the address of the commit on the Hub, where the vector was pushed.
    """

    vectors: list[AlignmentVector]
    commit: str | None = None


def train(
    config: TrainConfig, on_vector: Callable[[AlignmentVector], None] | None = None
) -> Trained:
    """Train the vectors of a configuration, one after the other.

    All are checked, and their folders locked, before the first is begun. With several processes
    (torchrun) each calls this; only the first writes.

    Args:
        on_vector: is called with each vector when it is written, before it is pushed.

    Raises:
        UsageError: domains or run folders that do not go together, or an unknown argument.
        AVError: a domain, its records or an argument is wrong; see `train_job`; the Hub refuses it.
    """
    jobs, repo = plan_jobs(config), config.push_to_hub
    vectors, commit = [], None
    with contextlib.ExitStack() as stack:
        in_main_process(lambda: [stack.enter_context(job.locked()) for job in jobs])
        for job in jobs:
            in_main_process(job.check)
        if repo:
            in_main_process(functools.partial(check_access, repo))
        in_main_process(lambda: base_or_default(config.base))
        for job in jobs:
            load = functools.cache(functools.partial(load_base, job.base, job.arguments))
            if config.selects_lambdas and not job.done:
                job = replace(job, lambdas=select_lambdas(load, job.domain, job.records))
            vector = train_job(job, load)
            gc.collect()  # a Trainer is part of a cycle; the next model needs the room
            if vector is None:
                continue
            vectors.append(vector)
            if on_vector:
                on_vector(vector)
            if repo:
                commit = _push(vector, repo, config.private)
    return Trained(vectors, commit)


def plan_jobs(config: TrainConfig) -> list[Job]:
    """Return the trainings of a configuration, with their records.

    Raises:
        UsageError, AVError: see `train`.
    """
    goal = None
    if config.joint:
        goal, domains, records = _joint_records(config.joint, config.max_records)
    else:
        domains = [load_domain(name) for name in config.domains]
        records = [_first(load_records(d, config.data), config.max_records) for d in domains]
    _refuse_repeated("--domain", domains)
    held = _held_records(config)
    if len(domains) == 1 and domains[0].name in held:
        raise UsageError(f"--hold: {domains[0].name} is what is trained")
    jobs = [
        Job(
            base=config.base or str(DEFAULT_BASE),
            domain=domain,
            records=of_domain,
            out=Path(config.out or VECTORS / domain.name),
            # A DPOConfig is changed by its trainer: each job has its own.
            arguments=training_arguments(
                config.arguments,
                config.config,
                config.setting,
                output_dir=str(RUNS / domain.name),
            ),
            pairing="first" if config.joint else config.pairs or PAIRING[config.setting],
            lambdas=config.lambdas or (1.0,),
            held={name: part for name, part in held.items() if name != domain.name},
            hold=HOLD if config.hold_weight is None else config.hold_weight,
            dtype=config.dtype,
            patience=config.patience,
            keep_aligned=config.keep_aligned,
            resume=config.resume,
            overwrite=config.overwrite,
            joint=goal,
            dataset=dataset_of(domain, config.data),
        )
        for domain, of_domain in zip(domains, records, strict=True)
    ]
    if len({job.run.folder for job in jobs}) < len(jobs):
        raise UsageError("--output_dir goes with exactly one --domain")
    return jobs


def _joint_records(
    joint: str, max_records: int | None
) -> tuple[dict[str, str], list[Domain], list[list[Record]]]:
    """Return the goal of a joint training, its only domain, and that domain's records."""
    goal, parts = parse_goal(joint)
    records = []
    for part in parts:
        chosen = _first(load_records(part), max_records)
        records += wanted_first(chosen, part.name, goal[part.name])
    return goal, [joint_domain(goal)], [records]


def _held_records(config: TrainConfig) -> dict[str, list[Record]]:
    """Return domain → records on which the vectors shall change nothing."""
    domains = [load_domain(name) for name in config.hold]
    _refuse_repeated("--hold", domains)
    held = {}
    for domain in domains:
        records = load_records(domain)
        require_splits(records, "train", "validation", source=domain.name)
        held[domain.name] = [r for r in _first(records, config.max_records) if r.split != "test"]
    return held


def _first(records: Sequence[Record], count: int | None) -> list[Record]:
    """Return the first so many training records, all where there is no count; and all others."""
    training = [record for record in records if record.split == "train"]
    return training[:count] + [record for record in records if record.split != "train"]


def _refuse_repeated(option: str, domains: Sequence[Domain]) -> None:
    names = [domain.name for domain in domains]
    if len(set(names)) < len(names):
        raise UsageError(f"{option}: {max(names, key=names.count)} is given twice")


def _push(vector: AlignmentVector, repo: str, private: bool) -> str:
    """Push a vector that is whole on disk, whatever comes of it."""
    try:
        return vector.push_to_hub(repo, private=private or None)
    except AVError as error:
        flag = " --private" if private else ""
        raise AVError(
            f"{error}; the vector is whole, push it with `av-push {vector.folder} {repo}{flag}`"
        ) from error
