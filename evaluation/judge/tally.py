"""Counts of a judge's labels: shares of the levels, and the judge's agreement with known ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mergekit_av.data.domain import Domain
from mergekit_av.stats import Confusion, Estimate, cohen_kappa, confusion, wilson

from .judge import Verdict


@dataclass(frozen=True)
class Tally:
    """Counts of labels.

    Attributes:
        items: responses that were judged.
        labelled: those that got a label.
        undecided: those whose repeats gave none that is ahead.
        disputed: those whose repeats differ.
        judgements, unparseable: of all repeats; those that were no label.
        cut_off: judgements that ran out of tokens.
    """

    items: int
    labelled: int
    undecided: int
    disputed: int
    judgements: int
    unparseable: int
    cut_off: int

    @classmethod
    def of(cls, verdicts: Sequence[Verdict]) -> "Tally":
        """Count the labels of verdicts."""
        labels = [label for verdict in verdicts for label in verdict.labels]
        labelled = sum(verdict.label is not None for verdict in verdicts)
        return cls(
            items=len(verdicts),
            labelled=labelled,
            undecided=len(verdicts) - labelled,
            disputed=sum(verdict.disputed for verdict in verdicts),
            judgements=len(labels),
            unparseable=labels.count(None),
            cut_off=sum(verdict.cut_off for verdict in verdicts),
        )


@dataclass(frozen=True)
class Agreement:
    """A judge's agreement with the known levels of responses.

    Attributes:
        accuracy: share of the labelled that got their level; None where none got a label.
        kappa: Cohen's, of label and level; None where it is not defined.
        confusion: known level → label → number of responses.
    """

    tally: Tally
    accuracy: Estimate | None
    kappa: float | None
    confusion: Confusion

    @classmethod
    def of(cls, verdicts: Sequence[Verdict], levels: Sequence[str]) -> "Agreement":
        """Compare verdicts with the levels that their responses were written for."""
        known, labels = [], []
        for verdict in verdicts:
            level, label = verdict.response.level, verdict.label
            if level is not None and label is not None:
                known.append(level)
                labels.append(label)
        right = sum(level == label for level, label in zip(known, labels, strict=True))
        return cls(
            Tally.of(verdicts),
            wilson(right, len(labels)) if labels else None,
            cohen_kappa(known, labels),
            confusion(known, labels, levels),
        )


@dataclass(frozen=True)
class JudgeResult:
    """A judge's labels in one domain.

    Attributes:
        shares: level → share of the labelled answers, with Wilson intervals; empty where no answer
            got a label.
        check: the same judge on the records' own responses.
        verdicts: on the answers.
    """

    domain: str
    split: str
    tally: Tally
    shares: dict[str, Estimate]
    check: Agreement
    verdicts: list[Verdict]

    @classmethod
    def of(
        cls, domain: Domain, split: str, answers: Sequence[Verdict], known: Sequence[Verdict]
    ) -> "JudgeResult":
        """Count the verdicts on a model's answers, and those on the records' own responses."""
        tally, labels = Tally.of(answers), [verdict.label for verdict in answers]
        levels = list(domain.levels)
        shares = {
            level: wilson(labels.count(level), tally.labelled) for level in levels if tally.labelled
        }
        check = Agreement.of(known, levels)
        return cls(domain.name, split, tally, shares, check, list(answers))

    def as_json(self) -> dict[str, Any]:
        """Return the result for a JSON file."""
        return {
            **asdict(self),
            "verdicts": [
                {
                    "id": verdict.response.id,
                    "answer": verdict.response.text,
                    "labels": verdict.labels,
                    "label": verdict.label,
                }
                for verdict in self.verdicts
            ],
        }
