"""What TRL, transformers and torch raise while a model is trained, as an error in one line."""

import contextlib
from collections.abc import Iterator

import torch
from accelerate import PartialState
from safetensors import SafetensorError

from mergekit_av.errors import AVError

from .checkpoints import newest_whole
from .run_folder import Run

# Refused settings are told from an interruption, for a user must change them and not `--resume`. TRL and
# transformers raise ValueError for what contradicts itself, NotImplementedError for what they cannot
# combine, ImportError for a package that an option needs; the words are those of their other errors.
SETTINGS_ERRORS = (ValueError, NotImplementedError, ImportError)
SETTINGS_WORDS = ("to be installed", "`metric_for_best_model`")
# What a training cannot foresee; and how torch.save says that it could not write a file.
INTERRUPTIONS = (OSError, SafetensorError, torch.OutOfMemoryError)
DISK_FULL = ("inline_container", "PytorchStreamWriter")


@contextlib.contextmanager
def training_errors(run: Run) -> Iterator[None]:
    """Turn refused settings, a full disk and a lack of memory into an AVError.

    A run whose settings were refused before it had a checkpoint is removed: with other settings it
    would be another run, in whose way it stood.
    """
    try:
        yield
    except AVError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, SETTINGS_ERRORS) or any(sign in reason for sign in SETTINGS_WORDS):
            if PartialState().is_main_process and newest_whole(run.folder) is None:
                run.close(keep_aligned=False)
            raise AVError(f"the training cannot be done: {reason}") from error
        if any(sign in reason for sign in DISK_FULL):
            reason = "a checkpoint could not be written; is the disk full?"
        elif not isinstance(error, INTERRUPTIONS):
            raise
        raise AVError(f"the training stopped: {reason} Continue it with --resume") from error
