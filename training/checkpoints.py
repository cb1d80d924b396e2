"""Checkpoints of a run that are whole, and can be continued from.

transformers writes a checkpoint file by file into its final folder, and on resuming picks the
newest folder, whole or not. Here each whole checkpoint gets a list of its files and their sizes,
written last; one without such a list, or with a file missing or cut, does not count.
"""

import json
import shutil
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.training_args import TrainingArguments

from mergekit_av.io.atomic import write_whole
from mergekit_av.io.json import read_json

MANIFEST = "manifest.json"


class MarkWhole(TrainerCallback):
    """Write a checkpoint's manifest once every process has written its part."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        # Without the optimizer's state nothing can be continued.
        if state.is_world_process_zero and not args.save_only_model:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            write_whole(folder / MANIFEST, json.dumps(_sizes(folder), indent=2))


def newest_whole(run: Path) -> Path | None:
    """Return the newest checkpoint of a run that is whole, or None."""
    whole = [folder for folder in _checkpoints(run) if _is_whole(folder)]
    return max(whole, key=_step, default=None)


def is_last(checkpoint: Path) -> bool:
    """Tell whether the training ended with this checkpoint: its steps were done, or it stopped early.

    The Trainer would forget that on resuming, and go on.
    """
    callbacks = read_json(checkpoint / "trainer_state.json")["stateful_callbacks"]
    return callbacks["TrainerControl"]["args"]["should_training_stop"]


def discard_incomplete(run: Path) -> None:
    """Remove the checkpoints of a run that are not whole."""
    for folder in _checkpoints(run):
        if not _is_whole(folder):
            shutil.rmtree(folder)


def _checkpoints(run: Path) -> list[Path]:
    return [
        path
        for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.is_dir() and path.name.rpartition("-")[2].isdigit()
    ]


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _is_whole(folder: Path) -> bool:
    try:
        listed = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return listed == _sizes(folder)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and not path.name.endswith(".tmp")
    }
