"""Training at several λ: what lies on the other side of the base is trained, and not hoped for.

The paper trains θ_base + θ_AV, λ = 1, and finds what θ_base − θ_AV does. Here one θ_AV is trained
at each λ of a list in turn, and λ says which response of a pair is preferred there.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from trl import DPOTrainer

from .pairs import TURN


class SpectrumTrainer(DPOTrainer):
    """TRL's trainer, with the weights at θ_base + λ θ_AV in each step for the next λ of a list.

    The rows of its datasets have a column `turn` beside TRL's: above this λ the chosen response is
    the preferred one, at it and below the rejected one. The gradient of θ_AV is λ times that of
    the weights. The validation loss is the mean over all λ. A copy of the base stays in memory.

    Raises:
        ValueError: the weights are spread over processes (FSDP, DeepSpeed).
    """

    def __init__(self, *args: Any, lambdas: Sequence[float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("--lambdas needs whole weights in each process: no FSDP, no DeepSpeed")
        self._lambdas = tuple(lambdas)
        self._lambda = 1.0
        self._base = [(weight, weight.detach().clone()) for weight in self.model.parameters()]
        self.data_collator = _WithTurns(self.data_collator)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if TURN not in self._signature_columns:
            self._signature_columns.append(TURN)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        value = self._lambdas[self.state.global_step % len(self._lambdas)]
        with self._at(value):
            return super().training_step(*args, **kwargs) / value

    def prediction_step(self, *args: Any, **kwargs: Any):
        losses = []
        for value in self._lambdas:
            with self._at(value):
                loss, *rest = super().prediction_step(*args, **kwargs)
            losses.append(loss)
        return torch.stack(losses).mean(), *rest

    def compute_loss(self, model, inputs, *args: Any, **kwargs: Any):
        loss = super().compute_loss(model, _oriented(inputs, self._lambda), *args, **kwargs)
        # The chain rule: d/dθ_AV of what is computed at θ_base + λ θ_AV.
        return loss * self._lambda if self.model.training else loss

    @contextlib.contextmanager
    def _at(self, value: float) -> Iterator[None]:
        """The weights at θ_base + λ θ_AV, within a block."""
        self._lambda = value
        self._stretch(value)
        try:
            yield
        finally:
            self._stretch(1 / value)
            self._lambda = 1.0

    @torch.no_grad()
    def _stretch(self, factor: float) -> None:
        if factor != 1:
            for weight, base in self._base:
                torch.lerp(base, weight, factor, out=weight)


class _WithTurns:
    """TRL's collator, with the turn of each pair beside its tokens."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {**self.collate(rows), TURN: torch.tensor([row[TURN] for row in rows])}


def _oriented(inputs: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    """A batch of TRL's, first all chosen and then all rejected, as λ prefers them."""
    inputs = dict(inputs)
    stays = value > inputs.pop(TURN)
    pairs = torch.arange(2 * len(stays), device=stays.device).view(2, -1)
    order = torch.where(stays, pairs, pairs.flip(0)).flatten()
    chosen, rejected = "ref_chosen_logps", "ref_rejected_logps"
    if chosen in inputs:
        both = torch.cat([inputs.pop(chosen), inputs.pop(rejected)])[order]
        inputs[chosen], inputs[rejected] = both.chunk(2)
        names = [name for name in inputs if name not in (chosen, rejected)]
    else:
        names = list(inputs)
    return {**inputs, **{name: inputs[name][order] for name in names}}
