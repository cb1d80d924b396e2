"""The λ sweep: what a model prefers, and how it writes, at every λ of one or several vectors."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

from tqdm import tqdm

from mergekit_av.errors import AVError
from mergekit_av.evaluation.accuracy import Result
from mergekit_av.evaluation.fluency import Fluency, fluency
from mergekit_av.evaluation.measure.cache import Evaluator
from mergekit_av.evaluation.measure.requests import Job
from mergekit_av.evaluation.tasks import Task
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.generation import Answer

# More values than this are a mistake in the range.
MOST = 10_000


def parse_lambdas(text: str) -> list[float]:
    """`low:high:step`, `low:high` (the paper's step, 0.1), or values separated by commas.

    Returns:
        The values, rising, each once; `high` is among them where a step reaches it.

    Raises:
        AVError: not numbers, an empty or reversed range, a step that is not positive, or more
            than 10,000 values.
    """
    try:  # decimal, so that -1.5 + 12 · 0.1 is -0.3 and not -0.30000000000000004
        parts = [Decimal(part) for part in text.replace(",", ":").split(":")]
        finite = all(math.isfinite(part) for part in parts)
    except (InvalidOperation, ValueError):
        finite = False
    if not finite:
        raise AVError(f"λ must be like -1.5:1.5:0.1 or -1,0,0.5, not {text!r}")
    if ":" not in text:
        return sorted({float(part) for part in parts})
    if "," in text or len(parts) > 3:
        raise AVError(f"λ must be like -1.5:1.5:0.1 or -1,0,0.5, not {text!r}")
    low, high, step = (*parts, Decimal("0.1"))[:3]
    if step <= 0:
        raise AVError(f"the λ range {text} has the step {step}: it must be positive")
    if low > high:
        raise AVError(f"the λ range {text} is reversed: write {high}:{low}:{step}")
    if (steps := (high - low) / step) >= MOST:
        raise AVError(f"the λ range {text} has {steps:,.0f} values: take a larger step")
    return sorted({float(low + i * step) for i in range(math.floor(steps) + 1)})


@dataclass
class Point:
    """What was measured at one setting.

    Attributes:
        lambdas: vector → λ.
        results: (domain, split) → preference accuracies.
        fluency: what the guard saw; None where no answers were generated.
        answers: record id → answer.
    """

    lambdas: dict[str, float]
    results: dict[tuple[str, str], Result] = field(default_factory=dict)
    fluency: Fluency | None = None
    answers: dict[str, Answer] = field(default_factory=dict)


def sweep(
    evaluator: Evaluator,
    vector: str,
    lambdas: Sequence[float],
    tasks: Sequence[Task],
    written: Task | None = None,
    decoding: Decoding | None = None,
) -> Iterator[Point]:
    """Move one vector's λ, the others at 0; at each measure every task, and what the model writes
    to `written`, greedily unless `decoding` says how.

    Yields a point when all of it is measured, the smallest |λ| first. 0 is always among them:
    everything is compared with it. Nothing that the store holds is measured again.
    """
    decoding = decoding or Decoding()
    ordered = sorted({0.0, *lambdas}, key=lambda value: (abs(value), value))

    def jobs(value: float) -> list[Job]:
        setting = {vector: value}
        scored = [Job(setting, task) for task in tasks]
        return scored + ([Job(setting, written, decoding)] if written is not None else [])

    total = [job for value in ordered for job in jobs(value)]
    with tqdm(
        total=len(total),
        # The bar begins with what was kept: the time that is left is that of the others.
        initial=sum(map(evaluator.holds, total)),
        desc=f"Sweeping {vector}",
        unit="evaluation",
    ) as bar:
        for value in ordered:
            bar.set_postfix_str(f"λ = {value:g}")
            for _ in evaluator.measure(jobs(value)):
                bar.update()
            point = Point({vector: value})
            for task in tasks:
                point.results[task.name, task.split] = evaluator.result(point.lambdas, task)
            if written is not None:
                point.answers = evaluator.written(point.lambdas, written, decoding)
                same = [point.results[t.name, t.split] for t in tasks if t.name == written.name]
                point.fluency = fluency(point.answers, same)
            yield point
