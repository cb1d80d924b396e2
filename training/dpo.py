"""DPO with TRL: the aligned model, left in the folder of its run."""

import logging
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from accelerate import PartialState
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerState,
)
from trl import DPOTrainer

from mergekit_av.models.load import load_model
from mergekit_av.vectors.adapter import is_adapter
from mergekit_av.vectors.low_rank_delta import ADAPTER, ADAPTER_CONFIG

from .callbacks import EvaluateLast, Progress, StopDivergence
from .checkpoints import MarkWhole, is_last, newest_whole
from .drift import beside
from .history import history
from .inputs import TrainerInputs
from .job import SPLITS, Job
from .lora import lora_config
from .restore import RestoringTrainer
from .spectrum import LowRankTrainer, SpectrumTrainer

log = logging.getLogger(__name__)


def align(job: Job, inputs: TrainerInputs) -> None:
    """Train the aligned model, from the newest whole checkpoint if there is one, and keep it in the
    run folder.

    With several processes each calls this.
    """
    start, continued = time.monotonic(), newest_whole(job.run.folder) is not None
    job.arguments.max_length = inputs.limit
    save, state = _fit(job, inputs)
    if not PartialState().is_main_process:
        # Where the weights are spread over processes, all of them take part in writing.
        save(job.run.aligned)
        return
    # Of a run that was continued, nobody knows how long its first part took.
    seconds = None if continued else round(time.monotonic() - start, 1)
    job.run.finish(save, {**history(job, state), **inputs.cut, "seconds": seconds})


def _fit(job: Job, inputs: TrainerInputs) -> tuple[Callable[[Path], None], TrainerState]:
    """Train.

    Returns:
        A function that writes the aligned model to a folder; what the Trainer knows at the end.
    """
    checkpoint = newest_whole(job.run.folder)
    if checkpoint is not None and is_last(checkpoint):
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        best = state.best_model_checkpoint if job.arguments.load_best_model_at_end else None
        return partial(_copy, Path(best or checkpoint), inputs.tokenizer), state
    if checkpoint is not None:
        job.arguments.eval_on_start = False  # it was done, and would count as one without progress
    trainer = _trainer(job, inputs)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        if progress := trainer.pop_callback(Progress):
            progress.close()
    return partial(_save, trainer), trainer.state


def _save(trainer: DPOTrainer, folder: Path) -> None:
    trainer.save_model(str(folder))
    (folder / "training_args.bin").unlink(missing_ok=True)


def _copy(checkpoint: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if PartialState().is_main_process:
        if is_adapter(checkpoint):
            for name in (ADAPTER, ADAPTER_CONFIG):
                shutil.copyfile(checkpoint / name, folder / name)
        else:
            load_model(checkpoint, dtype="float32", device="cpu").save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _trainer(job: Job, inputs: TrainerInputs) -> DPOTrainer:
    """Return the trainer, its reference log-probabilities computed, or read from the run folder."""
    callbacks = [MarkWhole(), EvaluateLast(), StopDivergence()]
    if job.arguments.load_best_model_at_end:
        callbacks.append(EarlyStoppingCallback(job.patience))
    pairs = {split: job.run.pairs(split) for split in SPLITS}
    for split, numbers in inputs.usable.items():
        if len(numbers) < len(pairs[split]):  # else TRL's caches are found where they are
            pairs[split] = pairs[split].select(numbers)
    trainer_class, options = RestoringTrainer, {}
    if job.arguments.precompute_ref_batch_size is None and not job.at_one_only:
        # A batch is all pairs of a record, at all λ: the base's log-probabilities are computed once.
        size = len(pairs["train"]) // job.count("train")
        job.arguments.precompute_ref_batch_size = max(size, 1)
    if job.held:
        pairs = {split: beside(rows, inputs.held[split]) for split, rows in pairs.items()}
        options = {"hold": job.hold}
    if job.held or not job.at_one_only:
        trainer_class = LowRankTrainer if job.arguments.use_peft else SpectrumTrainer
    logging.getLogger("trl.trainer.dpo_trainer").addFilter(_is_news)
    trainer = trainer_class(
        inputs.model,
        args=job.arguments,
        train_dataset=pairs["train"],
        eval_dataset=None if job.arguments.eval_strategy == "no" else pairs["validation"],
        processing_class=inputs.tokenizer,
        callbacks=callbacks,
        peft_config=lora_config(job.arguments, inputs.folder),
        **options,
    )
    # Either would print twenty figures a step.
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(Progress)
    processes = PartialState().num_processes
    if processes > 1 and PartialState().is_main_process:
        log.info("training in %d processes", processes)
    return trainer


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether a message of TRL's is news: that prompts are cut is in our own log, and shorter."""
    return "is not a prefix of the tokenized" not in record.getMessage()
