"""What the tests of searches share: a world of smooth scores, tiny vectors, the command."""

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from mergekit_av.cli.search import av_search
from mergekit_av.evaluation.search.landscape import Setting
from mergekit_av.evaluation.search.problem import Question, axis

LEVELS = ("expert", "generic", "avoidance")


class World:
    """Scores as smooth functions of the coefficients, as a model's are: a vector moves its own
    domain along the spectrum, the others a little, and whatever goes far costs probability.

    Args:
        spill: how much of a vector's effect reaches the other domains.
    """

    def __init__(self, vectors: int = 3, *, step="0.2", records: int = 8, seed: int = 0, spill=0.3):
        rng = np.random.default_rng(seed)
        names = [f"d{number}" for number in range(vectors)]
        self.question = Question(
            {name: axis(-2, 2, step) for name in names}, dict.fromkeys(names, LEVELS)
        )
        # Place on the spectrum that each record's best answer has, as a function of the coefficients.
        self._mix = np.eye(vectors) + spill * rng.uniform(-1, 1, (vectors, vectors))
        self._start = rng.normal(0, 0.3, (vectors, records))
        self._levels = np.array([0.8, 0.0, -0.8])
        self._twist = rng.normal(0, 0.15, (vectors, records))

    def scores(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """(points, records, levels) of each domain."""
        place = points @ self._mix.T
        cost = 0.3 * np.square(points).sum(axis=1)[:, None, None]
        found = {}
        for number, name in enumerate(self.question.axes):
            own = place[:, number, None]
            at = self._start[number] + own + self._twist[number] * np.sin(2 * own)
            found[name] = -3 - cost - np.square(at[..., None] - self._levels)
        return found

    def settings(self, points) -> list[Setting]:
        scores = self.scores(np.array(points, dtype=float))
        return [
            Setting(tuple(point), {name: values[i] for name, values in scores.items()})
            for i, point in enumerate(points)
        ]


def explore(strategy, world: World, budget: int = 10_000) -> list[Setting]:
    """Let a strategy choose, and tell it what the world gives."""
    seen: list[Setting] = []
    while points := strategy.next(seen)[: budget - len(seen)]:
        seen += world.settings(points)
    return seen


def search(*options: object, **how: object) -> Result:
    """Run av-search in this process."""
    return CliRunner().invoke(av_search, [str(option) for option in options], **how)


def in_process(*options: object) -> None:
    """To be run in another process (`processes.start`)."""
    av_search.main([str(option) for option in options], prog_name="av-search")


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text("utf-8"))


def short_rows(domain: str, test: int = 4, validation: int = 4) -> list[dict]:
    """Short records of a domain."""
    splits = ["test"] * test + ["validation"] * validation
    return [
        {
            "id": f"{split[0]}{number}",
            "split": split,
            "query": f"{QUERIES[domain]} about {number}?",
            "responses": RESPONSES[domain],
        }
        for number, split in enumerate(splits)
    ]


QUERIES = {"medical": "What helps", "legal": "Who must pay"}
RESPONSES = {
    "medical": {"expert": "Take 5 mg.", "generic": "See a doctor.", "avoidance": "I can't say."},
    "legal": {"expert": "He owes 9.", "generic": "Ask a lawyer.", "avoidance": "No comment."},
}
