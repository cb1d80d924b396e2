"""A model with knobs, measured at settings of them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mergekit_av.models.generation import write_answers
from mergekit_av.models.load import load_model
from mergekit_av.models.scoring import mean_log_probs
from mergekit_av.runtime.knobs import Knobs
from mergekit_av.vectors.arithmetic import Rounding

from .requests import Job, Measured

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Setup:
    """What a measurer is made of, in whatever process.

    Attributes:
        base: folder.
        vectors: name → folder.
        dtype, device: see `load_model`.
        rounding, seed, transfer: see `Knobs`.
    """

    base: str
    vectors: dict[str, str]
    dtype: str
    device: str | None
    rounding: Rounding
    seed: int
    transfer: bool

    def measurer(self, tokenizer: "PreTrainedTokenizerBase") -> "Measurer":
        """Load the model and the vectors.

        Args:
            tokenizer: the base's, with a chat template.

        Raises:
            AVError: the base does not load, or a vector is not one of it.
        """
        model = load_model(self.base, self.dtype, self.device)
        options = {"rounding": self.rounding, "seed": self.seed, "transfer": self.transfer}
        return Measurer(Knobs(model, self.vectors, **options), model, tokenizer)


class Measurer:
    """Measures in this process. The model is its base again after each measurement."""

    def __init__(
        self, knobs: Knobs, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
    ):
        self.knobs, self.model, self.tokenizer = knobs, model, tokenizer

    def measure(self, jobs: Sequence[Job]) -> Iterator[Measured]:
        """Each job as it is done."""
        for number, job in enumerate(jobs):
            start = time.perf_counter()
            value = self._scores(job) if job.decoding is None else self._answers(job)
            yield Measured(number, value, time.perf_counter() - start)

    def _scores(self, job: Job) -> list[list[float]]:
        with self._at(job.lambdas) as model:
            return mean_log_probs(model, self.tokenizer, job.task.records).tolist()

    def _answers(self, job: Job) -> dict[str, Any]:
        records = job.task.records
        with self._at(job.lambdas) as model:
            answers = write_answers(model, self.tokenizer, records, job.decoding, progress=False)
        return {"answers": {id: asdict(answer) for id, answer in answers.items()}}

    def _at(self, lambdas: Mapping[str, float]):
        return self.knobs.at({**dict.fromkeys(self.knobs.vectors, 0.0), **lambdas})
