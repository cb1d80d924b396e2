"""The λ sweep: what a model prefers, and how it writes, at every λ of one vector."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from mergekit_av.evaluation.accuracy import Result
from mergekit_av.evaluation.fluency import Fluency, fluency
from mergekit_av.evaluation.measure.cache import Cache
from mergekit_av.evaluation.measure.requests import Generate, Request, Score
from mergekit_av.evaluation.tasks import Task
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.generation import Answer


@dataclass
class Point:
    """The measurements at one setting.

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
    cache: Cache,
    vector: str,
    lambdas: Sequence[float],
    tasks: Sequence[Task],
    queries: Task | None = None,
    decoding: Decoding | None = None,
) -> Iterator[Point]:
    """Move one vector's λ, the others at 0, and measure at each.

    Yields a point when all of it is measured, the smallest |λ| first. 0 is always among them:
    everything is compared with it. Nothing that the store holds is measured again.

    Args:
        tasks: to score.
        queries: to answer; None for none.
        decoding: how they are answered; greedily by default.
    """
    decoding = decoding or Decoding()
    ordered = sorted({0.0, *lambdas}, key=lambda value: (abs(value), value))

    def requests(value: float) -> list[Request]:
        setting = {vector: value}
        answered = [Generate(setting, queries, decoding)] if queries is not None else []
        return [*(Score(setting, task) for task in tasks), *answered]

    total = [request for value in ordered for request in requests(value)]
    with tqdm(
        total=len(total),
        # The bar begins with what was kept: the time that is left is that of the others.
        initial=sum(request in cache for request in total),
        desc=f"Sweeping {vector}",
        unit="evaluation",
    ) as bar:
        for value in ordered:
            bar.set_postfix_str(f"λ = {value:g}")
            for _ in cache.measure(requests(value)):
                bar.update()
            yield _point(cache, {vector: value}, tasks, queries, decoding)


def _point(
    cache: Cache,
    lambdas: dict[str, float],
    tasks: Sequence[Task],
    queries: Task | None,
    decoding: Decoding,
) -> Point:
    """Read a point whose measurements are kept."""
    point = Point(lambdas, {(task.name, task.split): cache.result(lambdas, task) for task in tasks})
    if queries is not None:
        point.answers = cache.answers(lambdas, queries, decoding)
        same_domain = [point.results[t.name, t.split] for t in tasks if t.name == queries.name]
        point.fluency = fluency(point.answers, same_domain)
    return point
