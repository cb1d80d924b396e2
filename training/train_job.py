"""One training, from its records to an alignment vector."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

from mergekit_av.errors import AVError
from mergekit_av.hub.source import resolve
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.models.load import refuse_vector
from mergekit_av.vectors.extraction import extract
from mergekit_av.vectors.vector import AlignmentVector

from .base import Base, load_base
from .dpo import align
from .errors import training_errors
from .inputs import TrainerInputs
from .job import SPLITS, Job
from .lora import LORA
from .processes import in_main_process

# Fields of DPOConfig that say where and how to run, not what comes out.
INCIDENTAL = {"output_dir", "run_name", "logging_dir", "disable_tqdm", "local_rank", "hub_token"}

log = logging.getLogger(__name__)


def train_job(job: Job, load: Callable[[], Base] | None = None) -> AlignmentVector | None:
    """Train, take the difference of the float32 weights to the base, and write the vector.

    With several processes (torchrun) each calls this; only the first writes.

    Args:
        load: gives the job's base, where it may have been loaded already.

    Returns:
        The vector; None in all processes but the first.

    Raises:
        AVError: too few records, a base that does not load, an output that is in the way, a run
            that was started with other settings, a training that diverges or cannot go on.
    """
    with contextlib.ExitStack() as stack:
        in_main_process(lambda: stack.enter_context(job.locked()))
        return _train(job, load or partial(load_base, job.base, job.arguments))


def _train(job: Job, load: Callable[[], Base]) -> AlignmentVector | None:
    main = PartialState().is_main_process
    done = job.done
    PartialState().wait_for_everyone()  # all have looked before one changes what they see
    if done:
        return _existing(job) if main else None
    in_main_process(job.check)
    with PartialState().main_process_first():
        base = resolve(job.base)
    refuse_vector(base)
    trained = job.resume and job.run.trained
    inputs = None if trained else TrainerInputs(job, load())
    in_main_process(lambda: _open_run(job, base))
    if inputs is not None:
        with training_errors(job.run):
            align(job, inputs)
        PartialState().wait_for_everyone()
    return _extract(job, base) if main else None


def _extract(job: Job, base: Path) -> AlignmentVector:
    """Write the vector of the aligned model that is in the run folder, and end the run."""
    try:
        vector = extract(
            base,
            job.run.aligned,
            job.out,
            name=job.domain.name,
            dtype=job.dtype,
            levels=list(job.domain.levels),
            training=job.run.history(),
            base_id=job.base,
            overwrite=job.overwrite,
        )
    except AVError as error:
        raise AVError(
            f"{error}. The trained model is kept in {job.run.aligned}: --resume goes on from there"
        ) from error
    job.run.close(job.keep_aligned)
    return vector


def _existing(job: Job) -> AlignmentVector:
    """Return the vector that is there already; remove what a kill has left of its run."""
    log.info("%s is there: kept", job.out)
    if job.run.started or job.run.vacant:
        job.run.close(job.keep_aligned)
    return AlignmentVector.open(job.out)


def _open_run(job: Job, base: Path) -> None:
    """Begin the run, or make sure that the one that is there can be continued."""
    pairs = {split: job.pairs(split) for split in SPLITS}
    settings: dict[str, Any] = {
        "base": fingerprint(Checkpoint(base)),
        "domain": job.domain.name,
        "pairs": job.pairing,
        "lambdas": job.lambdas,
        "records": f"{job.count('train')} + {job.count('validation')} ({_digest(pairs)})",
    }
    if job.held:
        held = {name: [asdict(record) for record in records] for name, records in job.held.items()}
        settings["held"] = f"{', '.join(held)} ({_digest(held)})"
        settings["hold_weight"] = job.hold
    settings["patience"] = job.patience
    settings["processes"] = PartialState().num_processes
    arguments = job.arguments.to_dict()
    left_out = INCIDENTAL if job.arguments.use_peft else {*INCIDENTAL, *LORA}
    settings |= {key: value for key, value in arguments.items() if key not in left_out}
    settings = json.loads(json.dumps(settings, default=str))
    if job.resume and job.run.started:
        job.run.resume(settings)
    else:
        job.run.begin(settings, pairs)


def _digest(texts: Any) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:8]
