"""Has the language broken down? A guard over what a model writes at some λ.

Preference accuracy is teacher-forced: it does not see that a model which prefers the right answers
may write loops and fragments itself. The guard compares its answers with those of the base, both
written greedily, or both as `--gen-kwargs` says.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from mergekit_av.errors import AVError
from mergekit_av.logprobs import context_length, mean_log_probs, within_context
from mergekit_av.records import Record

from .answers import Answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# How much worse than the base's own answers is still language. Chosen by reading what three vectors
# of a 135 M model wrote (docs/sweep.md): language at .58 nats less, none at .70 less or .28 repeated
# more.
LOG_PROB_MARGIN = 0.6
REPETITION_MARGIN = 0.2
UNENDED_MARGIN = 0.5
N = 4


@dataclass(frozen=True)
class Fluency:
    """What the guard sees of a set of answers.

    Attributes:
        log_prob: mean log-probability of the answers under the base, nats per token; mean over the
            answers. Fragments are improbable.
        repeated: share of the answers' 4-grams (of words) that stood before, in the same answer or
            in one to another query. Loops repeat, and so does a model that no longer listens.
        unended: share of the answers that the model did not end before they were cut.
    """

    log_prob: float
    repeated: float
    unended: float

    def damage(self, base: "Fluency") -> float:
        """How much these answers have used up of what the guard allows, measured by the base's own:
        1 at the limit, more beyond it, 0 or less for answers as good as the base's.

        They may be less probable by 0.6 nats per token, repeat .2 more of their 4-grams, and half
        of them more may not end; whichever is nearest to its limit counts.
        """
        return max(
            (base.log_prob - self.log_prob) / LOG_PROB_MARGIN,
            (self.repeated - base.repeated) / REPETITION_MARGIN,
            (self.unended - base.unended) / UNENDED_MARGIN,
        )

    def holds(self, base: "Fluency") -> bool:
        """Whether these answers are language: within the limits of `damage`."""
        return self.damage(base) <= 1


def repeated_share(texts: Iterable[str], n: int = N) -> float:
    """Share of the texts' n-grams of words that stood in one of them before; 0 without n-grams."""
    grams = []
    for text in texts:
        words = text.lower().split()
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def fluency(answers: Mapping[str, Answer], log_prob: float) -> Fluency:
    """What the guard sees of answers (record id → answer) of a known `answers_log_prob`."""
    return Fluency(
        log_prob=log_prob,
        repeated=repeated_share(answer.text for answer in answers.values()),
        unended=fmean(not answer.ended for answer in answers.values()),
    )


def answers_log_prob(
    base: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    records: Sequence[Record],
    answers: Mapping[str, Answer],
) -> float:
    """Mean log-probability of the answers to the records' prompts under the base, nats per token.

    Raises:
        AVError: none of the answers fits the context. (Broken text may take more tokens to read
            than it took to write; such an answer is left out.)
    """
    written = [
        Record(record.id, record.prompt, {"answer": answers[record.id].text}, record.split)
        for record in records
    ]
    readable = within_context(tokenizer, written, context_length(base))
    if not readable:
        raise AVError("no answer fits the model's context: lower the number of new tokens")
    return mean_log_probs(base, tokenizer, readable).mean().item()


def usable_range(
    measured: Mapping[float, Fluency],
) -> tuple[float, float] | None:
    """The widest span of measured λ around 0 in which the guard holds at each of them.

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
