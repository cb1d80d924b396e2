"""DPO with the IPO loss by TRL, from records to an alignment vector."""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerState,
)
from trl import DPOConfig, DPOTrainer

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import Record, require_splits
from mergekit_av.errors import AVError
from mergekit_av.hub.source import resolve
from mergekit_av.io.atomic import check_vacant
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.io.locks import locked
from mergekit_av.models.chat import cut_sentence, encode, left_out
from mergekit_av.models.load import load_model, refuse_vector
from mergekit_av.models.scoring import context_length
from mergekit_av.models.vocabulary import check_ids
from mergekit_av.vectors.extraction import extract
from mergekit_av.vectors.metadata import METADATA
from mergekit_av.vectors.vector import AlignmentVector
from mergekit_av.vectors.writing import VECTOR

from .base import Base, load_base
from .callbacks import EvaluateLast, Progress, StopDivergence
from .checkpoints import MarkWhole, is_last, newest_whole
from .drift import beside, held_texts
from .pairs import LAMBDA, Pairing, preference_pairs, spectrum_pairs, with_different_responses
from .processes import in_main_process
from .restore import RestoringTrainer
from .run import Run
from .settings import HOLD, PATIENCE
from .spectrum import SpectrumTrainer

SPLITS = ("train", "validation")
# Fields of DPOConfig that say where and how to run, not what comes out.
INCIDENTAL = {"output_dir", "run_name", "logging_dir", "disable_tqdm", "local_rank", "hub_token"}
# Fields worth a line in the metadata of a vector.
REPORTED = (
    "loss_type", "loss_weights", "beta", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
    "max_length", "weight_decay", "max_grad_norm", "optim", "bf16", "fp16", "seed",
)  # fmt: skip
# Of what is logged at a step.
LOGGED = ("step", "loss", "eval_loss", "drift", "eval_drift")
# How TRL and transformers refuse settings.
REFUSALS = (ValueError, NotImplementedError, ImportError)
REFUSED = ("to be installed", "`metric_for_best_model`")
# What a training cannot foresee; and how torch.save says that it could not write a file.
INTERRUPTIONS = (OSError, SafetensorError, torch.OutOfMemoryError)
DISK_FULL = ("inline_container", "PytorchStreamWriter")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One training: of which base, on what, to where.

    Attributes:
        out: the AV folder to write.
        lambdas: at which λ it is trained; the paper's is 1 alone. See spectrum.py.
        held: domain → records on which the vector shall change nothing: those of the train split
            while it is trained, those of the validation split where that is validated. See held.py.
        hold: the weight of these in the loss.
        arguments: of TRL; `output_dir` is the run folder, see run.py.
        dtype: the vector's.
        keep_aligned: keep the aligned checkpoint, in the run folder's `aligned`.
        resume: continue the run that is there, if one is; keep a vector that is done.
        overwrite: replace a vector that is there; without `resume`, a run as well.
        joint: domain → the level that is wanted there, where the records are of several domains.
        dataset: the Hub id of the records, where they come from there.
    """

    base: str
    domain: Domain
    records: Sequence[Record]
    out: Path
    arguments: DPOConfig
    pairing: Pairing = "adjacent"
    lambdas: tuple[float, ...] = (1.0,)
    held: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    hold: float = HOLD
    dtype: str = "bfloat16"
    patience: int = PATIENCE
    keep_aligned: bool = False
    resume: bool = False
    overwrite: bool = False
    joint: dict[str, str] | None = None
    dataset: str | None = None

    @property
    def run(self) -> Run:
        return Run(Path(self.arguments.output_dir))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run and the vector's folder, from before they are looked at to the end.

        Raises:
            AVError: another process has one of them, or they are one.
        """
        if not self.out.exists():
            self.keep_apart()
        with self.run.locked(), locked(self.out, "choose another folder with --out"):
            yield

    def keep_apart(self) -> None:
        """Raise AVError where the run would be in the vector's folder, which is to be replaced."""
        out, run = self.out.resolve(), self.run.folder.resolve()
        if out == run or out in run.parents:
            raise AVError(f"the run would be in {self.out}: choose another --out, or --output_dir")

    @property
    def one_sided(self) -> bool:
        """Whether it is trained as the paper does, at λ = 1 alone."""
        return self.lambdas == (1.0,)

    def pairs(self, split: str) -> list[dict[str, Any]]:
        """The preference pairs of a split, as rows for the trainer."""
        records = [record for record in self.records if record.split == split]
        if self.one_sided:
            at_one = {LAMBDA: 1.0} if self.held else {}
            return [{**row, **at_one} for row in preference_pairs(records, self.pairing)]
        return spectrum_pairs(records, self.lambdas, self.pairing)

    @property
    def done(self) -> bool:
        """Whether there is nothing to resume: the vector is there, and no other run than its own."""
        if self.overwrite or not self.resume or not (self.out / METADATA).is_file():
            return False
        if not self.run.started:
            return True
        vector = AlignmentVector.open(self.out)
        return self.run.trained and vector.metadata.training == self.run.history()


def check(job: Job) -> None:
    """Raise AVError for what can be seen to be wrong before anything is computed."""
    if job.done:
        return
    require_splits(job.records, *SPLITS, source=job.domain.name)
    check_vacant(job.out, job.overwrite, VECTOR)
    job.keep_apart()
    job.run.check(job.resume, job.overwrite)


def train(job: Job, load: Callable[[], Base] | None = None) -> AlignmentVector | None:
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
    with contextlib.ExitStack() as held:
        in_main_process(lambda: held.enter_context(job.locked()))
        return _train(job, load or partial(load_base, job.base))


def _train(job: Job, load: Callable[[], Base]) -> AlignmentVector | None:
    main = PartialState().is_main_process
    done = job.done
    PartialState().wait_for_everyone()  # all have looked before one changes what they see
    if done:
        return _keep(job) if main else None
    in_main_process(lambda: check(job))
    with PartialState().main_process_first():
        base = resolve(job.base)
    refuse_vector(base)
    trained = job.resume and job.run.trained
    pupil = None if trained else _Pupil(job, load())
    in_main_process(lambda: _open(job, base))
    if pupil is not None:
        with _library_errors_in_one_line(job.run):
            _align(job, pupil)
        PartialState().wait_for_everyone()
    if not main:
        return None
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


def _keep(job: Job) -> AlignmentVector:
    """The vector is there already: remove what a kill has left of its run."""
    log.info("%s is there: kept", job.out)
    if job.run.started or job.run.vacant:
        job.run.close(job.keep_aligned)
    return AlignmentVector.open(job.out)


def _open(job: Job, base: Path) -> None:
    """Begin the run, or make sure that the one that is there can be continued."""
    pairs = {split: job.pairs(split) for split in SPLITS}
    held = {name: [asdict(record) for record in records] for name, records in job.held.items()}
    settings = {
        "base": fingerprint(Checkpoint(base)),
        "domain": job.domain.name,
        "pairs": job.pairing,
        "lambdas": job.lambdas,
        "records": f"{_count(job, 'train')} + {_count(job, 'validation')} ({_digest(pairs)})",
        **(
            {"held": f"{', '.join(held)} ({_digest(held)})", "hold_weight": job.hold}
            if held
            else {}
        ),
        "patience": job.patience,
        "processes": PartialState().num_processes,
        **{k: v for k, v in job.arguments.to_dict().items() if k not in INCIDENTAL},
    }
    settings = json.loads(json.dumps(settings, default=str))
    if job.resume and job.run.started:
        job.run.resume(settings)
    else:
        job.run.begin(settings, pairs)


def _digest(texts: Any) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:8]


class _Pupil:
    """The base in float32, its tokenizer, its limit of tokens, what of the records exceeds it, and
    the texts on which it is held.

    Raises:
        AVError: nothing fits, or a token has no embedding.
    """

    def __init__(self, job: Job, base: Base):
        self.model, self.tokenizer = base.model, base.tokenizer
        if padding := job.arguments.pad_token:
            id = self.tokenizer.convert_tokens_to_ids(padding)
            check_ids(self.model, self.tokenizer, [id or 0], "--pad_token")
        # A checkpoint leaves tied weights out: nothing is missing, as the Trainer would warn.
        self.model._keys_to_ignore_on_save = set(self.model.all_tied_weights_keys)
        limits = [job.arguments.max_length, context_length(self.model)]
        self.limit = min((limit for limit in limits if limit is not None), default=None)
        self.cut = _report_cut(job, self.model, self.tokenizer, self.limit)
        self.teaching = _teaching(job, self.tokenizer, self.limit)
        self.held = {split: self._held(job, split) for split in SPLITS if job.held}

    def _held(self, job: Job, split: str) -> list[tuple[list[int], int]]:
        records = [r for records in job.held.values() for r in records if r.split == split]
        texts = held_texts(records, self.tokenizer, self.limit, job.arguments.seed)
        used = (max(ids) for ids, _ in texts)
        check_ids(self.model, self.tokenizer, used, f"the held {split} records")
        return texts


def _align(job: Job, pupil: _Pupil) -> None:
    """Train the aligned model and leave it in the run folder."""
    start, continued = time.monotonic(), newest_whole(job.run.folder) is not None
    job.arguments.max_length = pupil.limit
    save, state = _fit(job, pupil)
    if not PartialState().is_main_process:
        # Where the weights are spread over processes, all of them take part in writing.
        save(job.run.aligned)
        return
    # Of a run that was continued, nobody knows how long its first part took.
    seconds = None if continued else round(time.monotonic() - start, 1)
    job.run.finish(save, {**_history(job, state), **pupil.cut, "seconds": seconds})


def _fit(job: Job, pupil: _Pupil) -> tuple[Callable[[Path], None], TrainerState]:
    """Train, from the newest whole checkpoint if there is one.

    Returns:
        A function that writes the aligned model to a folder; what the Trainer knows at the end.
    """
    checkpoint = newest_whole(job.run.folder)
    if checkpoint is not None and is_last(checkpoint):
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        best = state.best_model_checkpoint if job.arguments.load_best_model_at_end else None
        return lambda folder: _copy(Path(best or checkpoint), pupil.tokenizer, folder), state
    if checkpoint is not None:
        job.arguments.eval_on_start = False  # it was done, and would count as one without progress
    trainer = _trainer(job, pupil)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        if progress := trainer.pop_callback(Progress):
            progress.close()

    def save(folder: Path) -> None:
        trainer.save_model(str(folder))
        (folder / "training_args.bin").unlink(missing_ok=True)

    return save, trainer.state


def _copy(checkpoint: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if PartialState().is_main_process:
        load_model(checkpoint, dtype="float32", device="cpu").save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _trainer(job: Job, pupil: _Pupil) -> DPOTrainer:
    """The trainer, with the reference log-probabilities computed, or read from the run folder."""
    callbacks = [MarkWhole(), EvaluateLast(), StopDivergence()]
    if job.arguments.load_best_model_at_end:
        callbacks.append(EarlyStoppingCallback(job.patience))
    pairs = {split: job.run.pairs(split) for split in SPLITS}
    for split, numbers in pupil.teaching.items():
        if len(numbers) < len(pairs[split]):  # else TRL's caches are found where they are
            pairs[split] = pairs[split].select(numbers)
    make = RestoringTrainer if job.one_sided else SpectrumTrainer
    if job.held:
        make = partial(SpectrumTrainer, hold=job.hold)
        pairs = {split: beside(rows, pupil.held[split]) for split, rows in pairs.items()}
    trainer = make(
        pupil.model,
        args=job.arguments,
        train_dataset=pairs["train"],
        eval_dataset=None if job.arguments.eval_strategy == "no" else pairs["validation"],
        processing_class=pupil.tokenizer,
        callbacks=callbacks,
    )
    # Either would print twenty figures a step.
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(Progress)
    processes = PartialState().num_processes
    if processes > 1 and PartialState().is_main_process:
        log.info("training in %d processes", processes)
    return trainer


def _teaching(
    job: Job, tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> dict[str, list[int]]:
    """Split → numbers of the pairs whose responses are not the same: the others teach nothing.

    Raises:
        AVError: nothing is left of a split, or of the training at one of the λ.
    """
    every = {split: job.pairs(split) for split in SPLITS}
    shown = None if job.arguments.truncation_mode == "keep_end" else limit
    kept = {split: with_different_responses(every[split], tokenizer, shown) for split in SPLITS}
    for split, numbers in kept.items():
        if not numbers:
            raise AVError(f"in each of the {split} pairs both responses are the same")
    at = {every["train"][number].get(LAMBDA) for number in kept["train"]}
    for row in every["train"]:
        if row.get(LAMBDA) not in at:
            raise AVError(
                f"in each of the train pairs at λ = {row[LAMBDA]:g} both responses are the same"
            )
    total, left = (sum(map(len, pairs.values())) for pairs in (every, kept))
    if left < total and PartialState().is_main_process:
        log.warning("%d of %d pairs are left out: both responses are the same", total - left, total)
    return kept


def _report_cut(
    job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> dict[str, int]:
    """Count what the limit cuts or leaves out; TRL does both in silence. Say what of the prompts is
    left out.

    Raises:
        AVError: it leaves nothing of a split, or a token that is used has no embedding.
    """
    cut = total = left = 0
    room, ends = set(), []
    records = [record for record in job.records if record.split in SPLITS]
    for record in tqdm(records, desc="Counting tokens", delay=1):
        prompt, responses = encode(tokenizer, record.prompt, list(record.responses.values()))
        total += len(responses)
        if limit is not None and len(prompt) >= limit:
            left += 1
            continue
        ends.append(left_out(tokenizer, record.prompt, prompt))
        used = (max((prompt + ids)[:limit], default=0) for ids in responses)
        check_ids(model, tokenizer, used, f"record {record.id}")
        room.add(record.split)
        cut += sum(limit is not None and len(prompt) + len(ids) > limit for ids in responses)
    for split in SPLITS:
        if split not in room:
            raise AVError(
                f"no prompt of the {split} records leaves room for a response in {limit} tokens: "
                "raise --max_length, or take a base with a longer context"
            )
    if not PartialState().is_main_process:
        return {}
    where = f"the limit of {limit} tokens (--max_length, or the base's context)"
    if cut:
        log.warning("%d of %d responses go beyond %s: cut there", cut, total, where)
    if left:
        log.warning(
            "%d of %d records are left out: their prompts reach %s", left, len(records), where
        )
    if said := cut_sentence(ends):
        log.warning("%s", said)
    return {"responses_cut": cut, "records_left_out": left}


def _warning(job: Job, state: TrainerState) -> str | None:
    """What must be known of a training whose validation loss says that the base is no worse."""
    losses = {
        entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry
    }
    best = state.best_global_step if job.arguments.load_best_model_at_end else None
    loss = losses.get(best or state.global_step)
    untrained = losses.get(0)
    if job.arguments.loss_type == ["ipo"]:
        untrained = 1 / (2 * job.arguments.beta) ** 2
    if loss is None or untrained is None or loss < untrained:
        return None
    return (
        f"its validation loss, {loss:.4g}, is not below the untrained model's, {untrained:.4g}: "
        "train it again with another --learning_rate"
    )


def _history(job: Job, state: TrainerState) -> dict[str, Any]:
    """How the aligned model came about, for the vector's metadata."""
    return {
        "method": "DPO, full fine-tuning",
        "domain": job.domain.name,
        **({"joint": job.joint} if job.joint else {}),
        "dataset": job.dataset,
        "records": _count(job, "train"),
        "validation_records": _count(job, "validation"),
        "pairs": job.pairing,
        **({} if job.one_sided else {"lambdas": list(job.lambdas)}),
        **({"held": list(job.held), "hold_weight": job.hold} if job.held else {}),
        "processes": PartialState().num_processes,
        "steps": state.global_step,
        "best_step": state.best_global_step,
        "warning": _warning(job, state),
        **{key: _plain(getattr(job.arguments, key)) for key in REPORTED},
        "losses": [
            {k: entry[k] for k in LOGGED if k in entry}
            for entry in state.log_history
            if "loss" in entry or "eval_loss" in entry
        ],
    }


def _count(job: Job, split: str) -> int:
    return sum(record.split == split for record in job.records)


def _plain(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return getattr(value, "value", value)


@contextlib.contextmanager
def _library_errors_in_one_line(run: Run) -> Iterator[None]:
    """No traceback for settings that TRL refuses, for a full disk, for memory that is too small."""
    try:
        yield
    except AVError:
        raise
    except Exception as error:
        reason = _one_line(error)
        if isinstance(error, REFUSALS) or any(sign in reason for sign in REFUSED):
            # With other settings it would be another run: keep nothing that stands in its way.
            if PartialState().is_main_process and newest_whole(run.folder) is None:
                run.close(keep_aligned=False)
            raise AVError(f"the training cannot be done: {reason}") from error
        if any(sign in reason for sign in DISK_FULL):
            reason = "a checkpoint could not be written; is the disk full?"
        elif not isinstance(error, INTERRUPTIONS):
            raise
        raise AVError(f"the training stopped: {reason} Continue it with --resume") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
