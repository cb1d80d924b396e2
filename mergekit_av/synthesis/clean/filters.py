"""Filters: which records are fit to train on, and why the others are not.

The paper's steps (incomplete sets, truncated texts, other languages, repeated queries), and what its
instructions for responses ask for (free text; no refusal but where the level is one; lengths that do
not tell the level).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from mergekit_av.data.domain import Domain
from mergekit_av.errors import AVError

from .candidates import Candidate
from .duplicates import SIMILARITY, same_queries, similar_queries
from .language import LanguageCheck
from .lengths import Lengths, balance, measure
from .text_checks import asks_for_refusal, is_refusal, is_truncated, wrong_form

LENGTH = "length"  # the step that balances lengths
# Position → reason, of the candidates that a step drops.
Reasons = dict[int, str]


@dataclass(frozen=True)
class Rules:
    """Say what is asked of records.

    Attributes:
        refusals: the levels at which a refusal is right.
        language: of all texts, ISO 639-1.
        similarity: of two queries from which one is dropped; see `similar_queries`.
        balance: whether to drop records until lengths do not tell the level.
    """

    refusals: frozenset[str]
    language: str = "en"
    similarity: float = SIMILARITY
    balance: bool = False

    @classmethod
    def of(
        cls,
        domain: Domain,
        refusals: Sequence[str] = (),
        *,
        language: str = "en",
        similarity: float = SIMILARITY,
        balance: bool = False,
    ) -> "Rules":
        """Return the rules of a domain; where no level is named, refusals are right at those that ask
        for them.

        Raises:
            AVError: a named level is none of the domain's.
        """
        for level in refusals:
            if level not in domain.levels:
                raise AVError(
                    f"the domain {domain.name} has no level {level!r}; there are "
                    f"{', '.join(domain.levels)}"
                )
        asked = refusals or [level for level in domain.levels if asks_for_refusal(domain, level)]
        return cls(frozenset(asked), language, similarity, balance)


@dataclass(frozen=True)
class Dropped:
    """Hold a candidate that is left out, the step that dropped it, and the reason."""

    candidate: Candidate
    step: str
    reason: str


@dataclass(frozen=True)
class Cleaned:
    """Hold the result of cleaning.

    Attributes:
        read: how many candidates there were.
        kept: the clean ones, in their order.
        dropped: the others, in the order in which they were found.
        steps: step → how many it dropped.
        lengths: of the clean records, before they were balanced.
        balanced: afterwards; None where that was not asked for.
        refusing: level → share of the responses that are refusals, of the clean records.
    """

    read: int
    kept: list[Candidate]
    dropped: list[Dropped]
    steps: dict[str, int]
    lengths: Lengths
    balanced: Lengths | None
    refusing: dict[str, float]


def apply_filters(candidates: Sequence[Candidate], domain: Domain, rules: Rules) -> Cleaned:
    """Leave out what is not fit to train on.

    Every candidate is dropped by the first step that finds something wrong.

    Raises:
        AVError: nothing is left, or not enough to balance the lengths.
    """
    kept, dropped, counts = list(candidates), [], {}
    for step, find in _steps(domain, rules).items():
        found = find(kept)
        dropped += [Dropped(kept[i], step, reason) for i, reason in sorted(found.items())]
        kept = [candidate for i, candidate in enumerate(kept) if i not in found]
        counts[step] = len(found)
    if not kept:
        worst = max(counts, key=counts.__getitem__)
        example = next((one.reason for one in dropped if one.step == worst), "there are none")
        raise AVError(
            f"none of the {len(candidates)} records is clean; most were dropped as {worst}: {example}"
        )
    words, levels = _words(kept, domain), list(domain.levels)
    lengths, balanced = measure(words, levels), None
    if rules.balance:
        chosen = set(balance(words).tolist())
        reason = "its lengths make the level guessable"
        dropped += [Dropped(one, LENGTH, reason) for i, one in enumerate(kept) if i not in chosen]
        counts[LENGTH] = len(kept) - len(chosen)
        kept = [candidate for i, candidate in enumerate(kept) if i in chosen]
        balanced = measure(_words(kept, domain), levels)
    refusing = {
        level: sum(is_refusal(one.responses[level]) for one in kept) / len(kept) for level in levels
    }
    return Cleaned(len(candidates), kept, dropped, counts, lengths, balanced, refusing)


def _steps(domain: Domain, rules: Rules) -> dict[str, Callable[[Sequence[Candidate]], Reasons]]:
    """Return step → what finds those that it drops, in the order of the steps."""
    language = LanguageCheck(rules.language)

    def incomplete(one: Candidate) -> str | None:
        if one.fault:
            return one.fault
        missing = [level for level in domain.levels if not one.responses.get(level, "").strip()]
        return f"no response at the level {missing[0]!r}" if missing else None

    def cut_off(one: Candidate) -> str | None:
        for name, text in one.parts():
            if name in one.cut or is_truncated(text):
                return f"{name}: ends with {text.rstrip()[-40:]!r}"
        return None

    def another_language(one: Candidate) -> str | None:
        for name, text in one.parts():
            if foreign := language.find(text):
                return f"{name}: in {foreign}"
        return None

    def form(one: Candidate) -> str | None:
        for level, text in one.responses.items():
            if what := wrong_form(text):
                return f"{level}: has {what}"
        return None

    def refusal(one: Candidate) -> str | None:
        for level, text in one.responses.items():
            if level not in rules.refusals and is_refusal(text):
                return f"{level}: refuses"
        return None

    def duplicate(some: Sequence[Candidate]) -> Reasons:
        pairs = same_queries([one.query for one in some])
        return {i: f"asks the same as {some[earlier].id}" for i, earlier in pairs}

    def near_duplicate(some: Sequence[Candidate]) -> Reasons:
        pairs = similar_queries([one.query for one in some], rules.similarity)
        return {
            i: f"asks nearly the same as {some[earlier].id} (similarity {similarity:.2f})"
            for i, earlier, similarity in pairs
        }

    # The later ones are slower, or need what the earlier ones look for.
    return {
        "incomplete": _each(incomplete),
        "cut off": _each(cut_off),
        "form": _each(form),
        "refusal": _each(refusal),
        "duplicate": duplicate,
        "near-duplicate": near_duplicate,
        "language": _each(another_language, "Reading"),
    }


def _each(
    check: Callable[[Candidate], str | None], desc: str | None = None
) -> Callable[[Sequence[Candidate]], Reasons]:
    """Return a step that checks each candidate by itself; with a bar where it takes time."""

    def find(some: Sequence[Candidate]) -> Reasons:
        shown = tqdm(some, desc=desc, unit="record", disable=desc is None)
        return {i: reason for i, one in enumerate(shown) if (reason := check(one))}

    return find


def _words(some: Sequence[Candidate], domain: Domain) -> np.ndarray:
    return np.array(
        [[len(one.responses[level].split()) for level in domain.levels] for one in some]
    )
