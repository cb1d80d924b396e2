"""The fluency guard: has the language of a model at some λ broken down, measured by its base?

Preference accuracy compares responses with one another: it does not see that a model which prefers
the right ones finds all of them improbable, or writes loops itself. The guard looks at both, at how
well the model still predicts what people wrote and at what it writes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from mergekit_av.models.generation import Answer

from .accuracy import Result

# How much worse than the base is still language. Chosen by what agrees with 510 answers of 15 vectors
# of a 135 M model that were read without knowing of whom (docs/usable-range.md).
HELD_OUT_MARGIN = 0.5
REPETITION_MARGIN = 0.2
UNENDED_MARGIN = 0.5
N = 4


@dataclass(frozen=True)
class Fluency:
    """The measures of the guard at a setting.

    Attributes:
        held_out: mean log-probability of the response that the model prefers, nats per token; mean
            over records that were not trained on. A model that is no longer one of language predicts
            none of them.
        repeated: share of the 4-grams (of words) of its own answers that stood before, in the same
            answer or in one to another query. Loops repeat, and so does a model that no longer
            listens.
        unended: share of the answers that the model did not end before they were cut.
    """

    held_out: float
    repeated: float
    unended: float

    def damage(self, base: "Fluency") -> float:
        """Return how much is used up of what the guard allows, measured by the base: 1 at the limit,
        more beyond it, 0 or less where nothing is worse than the base.

        The preferred responses may be less probable by 0.5 nats per token, .2 more of the answers'
        4-grams repeated, and half of the answers more without an end; whichever is nearest to its
        limit counts.
        """
        return max(
            (base.held_out - self.held_out) / HELD_OUT_MARGIN,
            (self.repeated - base.repeated) / REPETITION_MARGIN,
            (self.unended - base.unended) / UNENDED_MARGIN,
        )

    def holds(self, base: "Fluency") -> bool:
        """Return whether this is still language: within the limits of `damage`."""
        return self.damage(base) <= 1


def repeated_share(texts: Iterable[str], n: int = N) -> float:
    """Return the share of the texts' n-grams of words that stood in one of them before; 0 without n-grams."""
    grams = []
    for text in texts:
        words = text.lower().split()
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def fluency(answers: Mapping[str, Answer], results: Iterable[Result]) -> Fluency:
    """Measure a model's answers (record id → answer), and its scores of records of the same domain."""
    return Fluency(
        held_out=fmean(
            max(levels.values()) for result in results for levels in result.scores.values()
        ),
        repeated=repeated_share(answer.text for answer in answers.values()),
        unended=fmean(not answer.ended for answer in answers.values()),
    )


def usable_range(measured: Mapping[float, Fluency]) -> tuple[float, float] | None:
    """Return the widest span of measured λ around 0 in which the guard holds at each of them.

    Args:
        measured: λ → what was measured there; 0 is the base itself.

    Returns:
        Lowest and highest λ, or None where 0 was not measured.
    """
    if 0 not in measured:
        return None

    def reach(lambdas: list[float]) -> float:
        last = 0.0
        for value in lambdas:
            if not measured[value].holds(measured[0]):
                break
            last = value
        return last

    ordered = sorted(measured)
    return reach([v for v in reversed(ordered) if v < 0]), reach([v for v in ordered if v > 0])
