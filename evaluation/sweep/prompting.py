"""The baseline: asking for a level in words, and what the words cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mergekit_av.evaluation.accuracy import Result
from mergekit_av.evaluation.measure.cache import Cache
from mergekit_av.evaluation.measure.engine import Engine
from mergekit_av.evaluation.tasks import Task, asking_for
from mergekit_av.models.chat import generation_prompt

REPEAT = 3


@dataclass(frozen=True)
class Cost:
    """The cost of a query before its answer begins.

    Attributes:
        prompt_tokens: mean over the records.
        first_token: seconds to the first token of the answer, median over records and repeats.
    """

    prompt_tokens: float
    first_token: float


def baseline(cache: Cache[Engine], task: Task) -> dict[str | None, tuple[Result, Cost]]:
    """Measure what the base prefers when it is asked for each level, and what the asking costs.

    Returns:
        Level → accuracies and cost; the key None is the bare query.

    Raises:
        AVError: an instruction leaves no record that fits the context.
    """
    model, tokenizer = cache.engine.model, cache.engine.tokenizer
    tasks = [task, *(asking_for(model, tokenizer, task, level) for level in task.domain.prompts)]
    bar = tqdm(tasks, desc=f"Asking in words, {task.name}", unit="wording")
    results = [cache.result({}, one) for one in bar]
    paid = costs(model, tokenizer, tasks)
    return {
        one.prompt: (result, cost) for one, result, cost in zip(tasks, results, paid, strict=True)
    }


def costs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    limit: int = 5,
) -> list[Cost]:
    """Measure each task's cost, over the records that all of them have.

    Times are taken side by side: every query in all its wordings in turn.

    Args:
        limit: measure the times of so many records.
    """
    prompts = [
        {r.id: generation_prompt(tokenizer, r.prompt) for r in task.records} for task in tasks
    ]
    # An instruction may have pushed a record out of the context.
    shared = [id for id in prompts[0] if all(id in side for side in prompts)]
    times: list[list[float]] = [[] for _ in tasks]
    _first_token(model, prompts[0][shared[0]])  # unmeasured: the first is always slow
    for _ in range(REPEAT):
        for id in shared[:limit]:
            for seconds, side in zip(times, prompts, strict=True):
                seconds.append(_first_token(model, side[id]))
    return [
        Cost(fmean(len(side[id]) for id in shared), median(seconds))
        for side, seconds in zip(prompts, times, strict=True)
    ]


@torch.inference_mode()
def _first_token(model: PreTrainedModel, prompt: list[int]) -> float:
    ids = torch.tensor([prompt], device=model.device)
    start = time.perf_counter()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=1,
        pad_token_id=0,  # nothing is padded
    )
    output.cpu()  # waits for the device
    return time.perf_counter() - start
