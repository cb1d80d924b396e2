"""Checkpoints of a training put back as they were saved.

transformers' Trainer puts a checkpoint back with `load_state_dict(strict=False)`. Where a model's
tensors have other names on disk than in memory (mixtures of experts, GPT-NeoX) nothing fits, nothing
is put back, and a line in the log is all that tells.
"""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from mergekit_av.errors import AVError
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.models.layout import Layout, named_tensors
from mergekit_av.models.load import layout_of

from .shared_prompts import SharedPromptsTrainer


class RestoringTrainer(SharedPromptsTrainer):
    """Train with TRL, and put checkpoints back whole: every weight, bit for bit.

    Weights that are spread over processes (FSDP, DeepSpeed) are put back as transformers does it, and so
    are adapters; they are saved under their names in memory.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        if self._is_spread or isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            put_back(self.model if model is None else model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self._is_spread or isinstance(self.model, PeftModel):
            super()._load_best_model()
        else:
            put_back(self.model, Path(self.state.best_model_checkpoint))

    @property
    def _is_spread(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled


@torch.no_grad()
def put_back(model: PreTrainedModel, folder: Path) -> None:
    """Give a model the weights of a checkpoint that was saved of it.

    Raises:
        AVError: a weight of the model is not in the checkpoint, or has another shape there.
    """
    checkpoint = Checkpoint(folder)
    layout, tensors = Layout.of(model, checkpoint.shapes), named_tensors(model)
    layout.check_whole(str(folder))
    for group in layout.units:
        read = {name: checkpoint.read(name) for name in group.disk}
        for name, value in layout.to_memory(group, read).items():
            tensors[name].copy_(value)


def check_whole(base: Path) -> None:
    """Check before a training that a vector can be made of what is trained of a base.

    Raises:
        AVError: the base has weights that nothing in its files becomes, or such as cannot be written as
            they were read.
    """
    of_base = layout_of(Checkpoint(base))
    of_base.check_whole(str(base))
    of_base.check_reversible()


@torch.no_grad()
def check_restorable(model: PreTrainedModel, base: Path) -> None:
    """Check before a training of all weights that its checkpoints can be put back.

    The model is turned into what would be saved of it, and back, in memory.

    Args:
        model: the base, loaded.
        base: its folder.

    Raises:
        AVError: the base has an architecture that transformers saves otherwise than it loads it.
    """
    tensors = named_tensors(model)
    saved = revert_weight_conversion(model, {n: tensor.detach() for n, tensor in tensors.items()})
    layout = Layout.of(model, {name: tuple(tensor.shape) for name, tensor in saved.items()})
    for group in layout.units:
        for name, value in layout.to_memory(group, saved).items():
            if value.shape != tensors[name].shape or not torch.equal(value, tensors[name]):
                raise AVError(_unsaved(base, name))
    for name in layout.missing:
        raise AVError(_unsaved(base, name))


def _unsaved(base: Path, name: str) -> str:
    return (
        f"{base} cannot be trained: what transformers saves of its architecture is not what it loads "
        f"({name})"
    )
