"""Counts of a judge's labels: shares of the levels, and the judge's agreement with known ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mergekit_av.data.domain import Domain
from mergekit_av.evaluation.rendering import interval
from mergekit_av.stats import Confusion, Estimate, cohen_kappa, confusion, wilson
from mergekit_av.text.tables import aligned

from .judge import Verdict

# Below this κ with the known levels a judge's shares say little; "moderate" begins here.
POOR = 0.4


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

    def __str__(self) -> str:
        text = f"{_count(self.items, 'answer')}, {_count(self.judgements, 'judgement')}"
        if self.unparseable:
            text += f", {self.unparseable} of them no label"
        if self.cut_off:
            text += f", {self.cut_off} cut off (--judge-max-tokens)"
        if self.judgements > self.items:
            text += f"; {self.disputed} answers got different labels"
        if self.undecided:
            text += f"; {self.undecided} answers have no label and count nowhere"
        return text


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
        labelled = [verdict for verdict in verdicts if verdict.label is not None]
        known = [verdict.response.level for verdict in labelled]
        labels = [verdict.label for verdict in labelled]
        right = sum(map(str.__eq__, known, labels))
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


def judge_table(results: Sequence[JudgeResult]) -> str:
    """Return shares as aligned text, and below them the judge's agreement."""
    rows = [["domain", "level", "judged share", "95 %"]]
    for result in results:
        for level, share in result.shares.items():
            first = level == next(iter(result.shares))
            name = f"{result.domain} ({result.tally.labelled})" if first else ""
            rows.append([name, level, f"{share.value:.2f}", interval(share)])
    lines = [aligned(rows)] if len(rows) > 1 else []
    for result in results:
        lines += [
            f"{result.domain}: {result.tally}",
            f"{result.domain}: {_agreement(result.check)}",
        ]
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _agreement(check: Agreement) -> str:
    text = f"judge against the known level of the records' own responses ({check.tally}): "
    if check.accuracy is None:
        return text + "it gave no label"
    kappa = "not defined" if check.kappa is None else f"{check.kappa:.2f}"
    text += f"Cohen's κ {kappa}, accuracy {check.accuracy.value:.2f} ({interval(check.accuracy)})"
    if check.kappa is None or check.kappa < POOR:
        text += "; this judge does not see the levels: its shares say little"
    return text
