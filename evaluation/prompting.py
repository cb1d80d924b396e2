"""The baseline: asking for a level in words, and what the words cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING

import torch

from mergekit_av.chat import encode
from mergekit_av.records import Record

from .sweep import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REPEAT = 3


@dataclass(frozen=True)
class Cost:
    """What a query costs before its answer begins.

    Attributes:
        prompt_tokens: mean over the records.
        first_token: seconds to the first token of the answer, median over records and repeats.
    """

    prompt_tokens: float
    first_token: float


def costs(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[Task],
    limit: int = 5,
) -> list[Cost]:
    """Each task's cost; times side by side: every query in all its wordings in turn."""
    prompts = [[_prompt(tokenizer, record) for record in task.records] for task in tasks]
    times: list[list[float]] = [[] for _ in tasks]
    _first_token(model, prompts[0][0])  # unmeasured: the first of all is always slow
    for _ in range(REPEAT):
        for wordings in list(zip(*prompts, strict=True))[:limit]:
            for side, prompt in zip(times, wordings, strict=True):
                side.append(_first_token(model, prompt))
    return [
        Cost(fmean(map(len, side)), median(seconds))
        for side, seconds in zip(prompts, times, strict=True)
    ]


def _prompt(tokenizer: "PreTrainedTokenizerBase", record: Record) -> list[int]:
    return encode(tokenizer, record.prompt, list(record.responses.values()))[0]


@torch.inference_mode()
def _first_token(model: "PreTrainedModel", prompt: list[int]) -> float:
    ids = torch.tensor([prompt], device=model.device)
    start = time.perf_counter()
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=1
    )
    output.cpu()  # waits for the device
    return time.perf_counter() - start
