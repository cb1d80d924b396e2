"""Training at several λ, so that the other side of the base is trained as well.

The paper trains θ_base + θ_AV, λ = 1, and finds what θ_base − θ_AV does. Here one θ_AV is trained
at several λ, at each of them towards the level that is meant there (`pairs.spectrum_pairs`).
"""

import contextlib
import math
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from peft.helpers import rescale_adapter_scale
from torch.func import functional_call

from .drift import COLUMNS, IDS, collate, drift
from .pairs import LAMBDA
from .restore import RestoringTrainer
from .settings import HOLD


class LambdaTrainer(RestoringTrainer):
    """Train with TRL, the model at θ_base + λ θ_AV for the λ of each batch.

    The rows of its datasets have a column `lambda` beside TRL's. All pairs of a training batch are
    of one λ, and the λ take turns. The validation loss is the mean over all rows.

    Where a text of another domain is beside each pair (`drift.beside`), its drift from the base
    counts in the loss, of training and of validation, with the weight `hold`.
    """

    def __init__(self, *args: Any, hold: float = HOLD, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._hold = hold
        self.data_collator: Any = _WithLambda(self.data_collator)

    @abstractmethod
    def _at(self, value: float) -> contextlib.AbstractContextManager:
        """Put the model at θ_base + λ θ_AV, within a block."""

    @abstractmethod
    def _base_logits(self, **inputs: Any) -> torch.Tensor:
        """Return the base's logits, (rows, length, vocabulary)."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        missing = {LAMBDA, *COLUMNS} - set(self._signature_columns)
        self._signature_columns += sorted(missing)

    def _get_train_sampler(self, train_dataset=None) -> "LambdaSampler":
        rows = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        records = [tuple(prompt) for prompt in rows["prompt_ids"]]
        return LambdaSampler(rows[LAMBDA], records, self.args.train_batch_size, seed)

    def training_step(self, model, inputs, *args: Any, **kwargs: Any) -> torch.Tensor:
        value = inputs.pop(LAMBDA)[0].item()
        with self._at(value):
            return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model, inputs, *args: Any, **kwargs: Any):
        lambdas = inputs.pop(LAMBDA)
        loss = 0.0
        for value in lambdas.unique():
            rows = lambdas == value
            with self._at(value.item()):
                part, *rest = super().prediction_step(model, _of(inputs, rows), *args, **kwargs)
            loss += part * rows.float().mean()
        return loss, *rest

    def compute_loss(self, model, inputs, *args: Any, **kwargs: Any):
        texts = [inputs.pop(column) for column in COLUMNS if column in inputs]
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if texts:
            divergence = drift(self.model, self._base_logits, *texts)
            everywhere = self.accelerator.gather(divergence.detach()).mean().item()
            mode = "train" if self.model.training else "eval"
            self._metrics[mode]["drift"].append(everywhere)
            loss = loss + self._hold * divergence
        return loss


class SpectrumTrainer(LambdaTrainer):
    """Train all weights at several λ. A copy of the base stays in memory.

    The gradient of θ_AV is λ times that of the weights.

    Raises:
        ValueError: the weights are spread over processes (FSDP, DeepSpeed).
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "--lambdas and --hold need whole weights in each process where all are trained: no FSDP "
                "and no DeepSpeed, or --use_peft"
            )
        self._lambda = 1.0
        self._base = {name: w.detach().clone() for name, w in self.model.named_parameters()}

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        value = args[1][LAMBDA][0].item()
        return super().training_step(*args, **kwargs) / value

    def compute_loss(self, *args: Any, **kwargs: Any):
        loss = super().compute_loss(*args, **kwargs)
        # The chain rule: d/dθ_AV of what is computed at θ_base + λ θ_AV.
        return loss * self._lambda if self.model.training else loss

    def _base_logits(self, **inputs: Any) -> torch.Tensor:
        return functional_call(self.model, self._base, kwargs=inputs).logits

    @contextlib.contextmanager
    def _at(self, value: float) -> Iterator[None]:
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
            for name, weight in self.model.named_parameters():
                torch.lerp(self._base[name], weight, factor, out=weight)


class LowRankTrainer(LambdaTrainer):
    """Train factors of low rank, an adapter, whose scale is λ; the base is the adapter switched off.

    So no weight is stretched, and it may be spread over processes.
    """

    def _at(self, value: float) -> contextlib.AbstractContextManager:
        return rescale_adapter_scale(self.model, value)

    def _base_logits(self, **inputs: Any) -> torch.Tensor:
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            return self.model(**inputs).logits


class LambdaSampler(torch.utils.data.Sampler):
    """Draw rows in an order in which each batch has one λ, and the λ take turns.

    The rows of a record at a λ come together, in one batch wherever they fit into one, so that their
    prompt is computed once. Records are shuffled anew each epoch. Where the rows of a λ do not fill
    as many whole batches as those of another, some come twice.

    Args:
        lambdas: of each row.
        records: of each row, whatever tells its record: rows with the same one belong together.
        batch: rows in a batch.
    """

    def __init__(
        self, lambdas: Sequence[float], records: Sequence[Hashable], batch: int, seed: int
    ):
        of_lambdas: dict[float, dict[Hashable, list[int]]] = {}
        for row, (value, record) in enumerate(zip(lambdas, records, strict=True)):
            of_lambdas.setdefault(value, {}).setdefault(record, []).append(row)
        self._groups = [list(of_lambdas[value].values()) for value in sorted(of_lambdas)[::-1]]
        self._batches = max(math.ceil(sum(map(len, groups)) / batch) for groups in self._groups)
        self._batch = batch
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._batches * self._batch * len(self._groups)

    def __iter__(self) -> Iterator[int]:
        shuffle = torch.Generator().manual_seed(self._seed + self._epoch)
        columns = [torch.tensor(self._drawn(groups, shuffle)) for groups in self._groups]
        batches = [column.view(self._batches, self._batch) for column in columns]
        return iter(torch.stack(batches, dim=1).flatten().tolist())

    def _drawn(self, groups: Sequence[list[int]], shuffle: torch.Generator) -> list[int]:
        """Return the rows of one λ, as many as fill the batches: all of them, then all anew."""
        drawn: list[int] = []
        while len(drawn) < self._batches * self._batch:
            waiting = [groups[number] for number in torch.randperm(len(groups), generator=shuffle)]
            left = []  # what fills no batch without a cut comes last, and is cut there
            while waiting:
                room = self._batch - len(drawn) % self._batch
                rows = _fitting(waiting, room) or _cut(waiting, room)
                if len(rows) == room or room < self._batch:
                    drawn += rows
                else:
                    left += rows
            drawn += left
        return drawn[: self._batches * self._batch]


def _fitting(waiting: list[list[int]], room: int) -> list[int]:
    """Take the first groups of rows that fit into so much room, one beside the other."""
    taken: list[int] = []
    place = 0
    while len(taken) < room and place < len(waiting):
        if len(taken) + len(waiting[place]) <= room:
            taken += waiting.pop(place)
        else:
            place += 1
    return taken


def _cut(waiting: list[list[int]], room: int) -> list[int]:
    """Take so many rows of the first group, which is larger."""
    rows = waiting[0][:room]
    waiting[0] = waiting[0][room:]
    return rows


class _WithLambda:
    """Collate as TRL does, with the λ of each pair beside its tokens."""

    def __init__(self, collate_pairs):
        self.collate_pairs = collate_pairs

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = collate(rows) if IDS in rows[0] else {}
        return {
            **self.collate_pairs(rows),
            **texts,
            LAMBDA: torch.tensor([row[LAMBDA] for row in rows]),
        }


def _of(inputs: dict[str, torch.Tensor], pairs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return some pairs of a batch of TRL's, in which all chosen come first and then all rejected."""
    both = pairs.repeat(2)
    return {k: v[pairs if len(v) == len(pairs) else both] for k, v in inputs.items()}
