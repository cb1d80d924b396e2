"""DPO with the IPO loss by TRL, from records to an alignment vector."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, ProgressCallback
from trl import DPOConfig, DPOTrainer

from mergekit_av.chat import encode, ensure_chat_template
from mergekit_av.checkpoint import Checkpoint, fingerprint
from mergekit_av.domains import Domain
from mergekit_av.errors import AVError
from mergekit_av.extraction import extract
from mergekit_av.files import check_vacant, write_whole
from mergekit_av.models import load_tokenizer, read_json, refuse_vector, resolve
from mergekit_av.records import Record, require_splits
from mergekit_av.vector import METADATA, AlignmentVector

from .checkpoints import MarkWhole, discard_incomplete, newest_whole
from .defaults import PATIENCE
from .pairs import Pairing, preference_pairs

SETTINGS = "settings.json"
ALIGNED = "aligned"
# Fields of DPOConfig that say where and how to run, not what comes out.
INCIDENTAL = {"output_dir", "run_name", "logging_dir", "disable_tqdm", "local_rank", "hub_token"}
# Fields worth a line in the metadata of a vector.
REPORTED = (
    "loss_type", "loss_weights", "beta", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
    "max_length", "weight_decay", "max_grad_norm", "optim", "bf16", "fp16", "seed",
)  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One training: of which base, on what, to where.

    Attributes:
        out: the AV folder to write.
        arguments: of TRL; `output_dir` is the run folder, which holds checkpoints and the cache
            of reference log-probabilities until the vector is written.
        dtype: the vector's.
        keep_aligned: keep the aligned checkpoint, in the run folder's `aligned`.
        resume: continue an interrupted run.
        overwrite: start over where a run or a vector is already there.
    """

    base: str
    domain: Domain
    records: Sequence[Record]
    out: Path
    arguments: DPOConfig
    pairing: Pairing = "adjacent"
    dtype: str = "bfloat16"
    patience: int = PATIENCE
    keep_aligned: bool = False
    resume: bool = False
    overwrite: bool = False

    @property
    def run(self) -> Path:
        return Path(self.arguments.output_dir)


def train(job: Job) -> AlignmentVector | None:
    """Train, take the difference of the float32 weights to the base, and write the vector.

    With several processes (torchrun, accelerate launch) each calls this; only the first writes.

    Returns:
        The vector; None in all processes but the first.

    Raises:
        AVError: too few records, a base that does not load, an output that is in the way, or a
            run that was started with other settings.
    """
    require_splits(job.records, "train", "validation", source=job.domain.name)
    check_vacant(job.out, job.overwrite, METADATA)
    base = resolve(job.base)
    refuse_vector(base)
    settings = _settings(job, base)
    state = PartialState()
    if state.is_main_process:
        _open_run(job, settings)
    state.wait_for_everyone()

    tokenizer = load_tokenizer(base)
    if (notice := ensure_chat_template(tokenizer)) and state.is_main_process:
        log.warning("%s: %s", job.base, notice)
    cut = _report_cut(job, tokenizer) if state.is_main_process else None
    trainer = _trainer(job, base, tokenizer)
    if state.is_main_process:
        log.info("training in %d processes", state.num_processes)
    _run(job, trainer)
    aligned = job.run / ALIGNED
    trainer.save_model(str(aligned))
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    tokenizer.save_pretrained(aligned)
    vector = extract(
        base,
        aligned,
        job.out,
        name=job.domain.name,
        dtype=job.dtype,
        levels=list(job.domain.levels),
        training=_history(job, trainer, cut),
        base_id=job.base,
        overwrite=job.overwrite,
    )
    _close_run(job)
    return vector


def _settings(job: Job, base: Path) -> dict[str, Any]:
    """What two runs must share for one to continue the other."""
    arguments = {k: v for k, v in job.arguments.to_dict().items() if k not in INCIDENTAL}
    return {
        "base": fingerprint(Checkpoint(base)),
        "domain": job.domain.name,
        "pairs": job.pairing,
        "patience": job.patience,
        "records": len(job.records),
        "arguments": json.loads(json.dumps(arguments, default=str)),
    }


def _open_run(job: Job, settings: dict[str, Any]) -> None:
    """Make the run folder with its data, or check that the one that is there can be continued."""
    started = (job.run / SETTINGS).is_file()
    if started and job.resume:
        before = read_json(job.run / SETTINGS)
        _check_same(job.run, before, settings)
        discard_incomplete(job.run)
        return
    if started and not job.overwrite:
        raise AVError(
            f"{job.run} holds a run that was not finished: continue it with --resume, or start "
            "over with --overwrite"
        )
    check_vacant(job.run, overwrite=started, marker=SETTINGS)
    if started:
        shutil.rmtree(job.run)
    for split in ("train", "validation"):
        records = [record for record in job.records if record.split == split]
        rows = preference_pairs(records, job.pairing)
        Dataset.from_list(rows).save_to_disk(job.run / "data" / split)
    # Written last: a run without settings has not begun.
    write_whole(job.run / SETTINGS, json.dumps(settings, indent=2))


def _check_same(run: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    flat_before = {**before, **before.get("arguments", {})}
    flat_now = {**now, **now["arguments"]}
    for key in flat_now:
        if key != "arguments" and flat_before.get(key) != flat_now[key]:
            raise AVError(
                f"{run} was started with {key} {flat_before.get(key)!r}, not {flat_now[key]!r}: "
                "resume with the same settings, or start over with --overwrite"
            )


def _report_cut(job: Job, tokenizer) -> int:
    """Count the responses that `max_length` cuts; TRL does it in silence."""
    limit, cut, total = job.arguments.max_length, 0, 0
    for record in job.records:
        if record.split == "test":
            continue
        prompt, responses = encode(tokenizer, record.prompt, list(record.responses.values()))
        total += len(responses)
        cut += sum(len(prompt) + len(ids) > limit for ids in responses) if limit else 0
    if cut:
        log.warning("%d of %d responses are longer than --max_length %d: cut", cut, total, limit)
    return cut


def _trainer(job: Job, base: Path, tokenizer) -> DPOTrainer:
    """The trainer, with the reference log-probabilities computed or read from the run folder."""
    # Both processes, and a resumed run, find TRL's caches beside these files.
    data = {split: load_from_disk(job.run / "data" / split) for split in ("train", "validation")}
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32", use_safetensors=True)
    callbacks = [MarkWhole()]
    if job.arguments.load_best_model_at_end:
        callbacks.append(EarlyStoppingCallback(job.patience))
    trainer = DPOTrainer(
        model,
        args=job.arguments,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(_LossProgress)
    return trainer


class _LossProgress(ProgressCallback):
    """transformers' progress bar, with the losses behind it instead of twenty figures a step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and logs:
            losses = {key: logs[key] for key in ("loss", "eval_loss") if key in logs}
            self.training_bar.set_postfix(losses)


def _run(job: Job, trainer: DPOTrainer) -> None:
    """Train from the newest whole checkpoint, if there is one."""
    checkpoint = newest_whole(job.run) if job.resume else None
    if checkpoint is None:
        trainer.train()
    elif _stopped_early(checkpoint, job.patience):
        # The interrupted run was through; the Trainer would forget that and go on.
        trainer.state = replace(trainer.state, **_state(checkpoint))
        trainer._load_best_model()
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint))


def _state(checkpoint: Path) -> dict[str, Any]:
    content = read_json(checkpoint / "trainer_state.json")
    return {k: content[k] for k in ("best_model_checkpoint", "log_history", "global_step")}


def _stopped_early(checkpoint: Path, patience: int) -> bool:
    callbacks = read_json(checkpoint / "trainer_state.json")["stateful_callbacks"]
    state = callbacks.get("EarlyStoppingCallback", {}).get("attributes", {})
    return state.get("early_stopping_patience_counter", 0) >= patience


def _history(job: Job, trainer: DPOTrainer, cut: int) -> dict[str, Any]:
    """How the aligned model came about, for the vector's metadata."""
    arguments, log_history = job.arguments, trainer.state.log_history
    splits = {s: sum(r.split == s for r in job.records) for s in ("train", "validation")}
    return {
        "method": "DPO, full fine-tuning",
        "domain": job.domain.name,
        "records": splits["train"],
        "validation_records": splits["validation"],
        "pairs": job.pairing,
        "responses_cut": cut,
        "processes": PartialState().num_processes,
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        **{key: _plain(getattr(arguments, key)) for key in REPORTED},
        "losses": [
            {k: entry[k] for k in ("step", "loss", "eval_loss") if k in entry}
            for entry in log_history
            if "loss" in entry or "eval_loss" in entry
        ],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return getattr(value, "value", value)


def _close_run(job: Job) -> None:
    """The vector is written: nothing of the run is needed any more, unless it was asked for."""
    if not job.keep_aligned:
        shutil.rmtree(job.run)
        return
    for path in job.run.iterdir():
        if path.name != ALIGNED:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
