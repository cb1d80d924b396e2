"""The engine that measures a model with knobs, in this process."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mergekit_av.models.generation import write_answers
from mergekit_av.models.load import load_model
from mergekit_av.models.scoring import mean_log_probs
from mergekit_av.runtime.knobs import Knobs
from mergekit_av.vectors.arithmetic import Rounding

from .requests import Generate, Measured, Request, Score

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineConfig:
    """Describe an engine, for this process or another.

    Attributes:
        base: folder or Hub id.
        vectors: name → folder.
        dtype, device: see `load_model`.
        rounding, seed, transfer: see `Knobs`.
    """

    base: str
    vectors: dict[str, str]
    dtype: str
    device: str
    rounding: Rounding
    seed: int
    transfer: bool

    def load(self, tokenizer: PreTrainedTokenizerBase) -> "Engine":
        """Load the model and the vectors.

        Args:
            tokenizer: the base's, with a chat template.

        Raises:
            AVError: the base does not load, or a vector is not one of it.
        """
        model = load_model(self.base, self.dtype, self.device)
        knobs = Knobs(
            model, self.vectors, rounding=self.rounding, seed=self.seed, transfer=self.transfer
        )
        return Engine(knobs, model, tokenizer)


class Engine:
    """Measure one request after the other. After each the model is its base again."""

    def __init__(self, knobs: Knobs, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.knobs, self.model, self.tokenizer = knobs, model, tokenizer

    def measure(self, requests: Sequence[Request]) -> Iterator[Measured]:
        """Yield the reply to each request as it is done."""
        for number, request in enumerate(requests):
            start = time.perf_counter()
            value = self._score(request) if isinstance(request, Score) else self._generate(request)
            yield Measured(number, value, time.perf_counter() - start)

    def _score(self, request: Score) -> list[list[float]]:
        with self._at(request.lambdas) as model:
            return mean_log_probs(model, self.tokenizer, request.task.records).tolist()

    def _generate(self, request: Generate) -> dict[str, Any]:
        with self._at(request.lambdas) as model:
            answers = write_answers(
                model, self.tokenizer, request.task.records, request.decoding, progress=False
            )
        return {"answers": {id: asdict(answer) for id, answer in answers.items()}}

    def _at(self, lambdas: Mapping[str, float]) -> AbstractContextManager[PreTrainedModel]:
        return self.knobs.at({**dict.fromkeys(self.knobs.vectors, 0.0), **lambdas})
