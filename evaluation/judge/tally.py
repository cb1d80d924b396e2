"""What a judge's labels come to: shares of the levels, and what the judge is worth."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mergekit_av.evaluation.accuracy import interval
from mergekit_av.stats import Confusion, Estimate, cohen_kappa, confusion, wilson
from mergekit_av.text.tables import aligned

from .judge import Verdict

# Below this κ with the known levels a judge's shares say little; "moderate" begins here.
POOR = 0.4


@dataclass(frozen=True)
class Tally:
    """Labels, counted.

    Attributes:
        items: how many were judged.
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
class Check:
    """A judge on responses whose level is known.

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
    def of(cls, verdicts: Sequence[Verdict], levels: Sequence[str]) -> "Check":
        labelled = [verdict for verdict in verdicts if verdict.label is not None]
        known = [verdict.item.known for verdict in labelled]
        labels = [verdict.label for verdict in labelled]
        right = sum(map(str.__eq__, known, labels))
        return cls(
            Tally.of(verdicts),
            wilson(right, len(labels)) if labels else None,
            cohen_kappa(known, labels),
            confusion(known, labels, levels),
        )


@dataclass(frozen=True)
class Judged:
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
    check: Check
    verdicts: list[Verdict]

    @classmethod
    def of(
        cls, domain: str, split: str, levels: Sequence[str], answers: Sequence[Verdict],
        known: Sequence[Verdict],
    ) -> "Judged":  # fmt: skip
        tally, labels = Tally.of(answers), [verdict.label for verdict in answers]
        shares = {
            level: wilson(labels.count(level), tally.labelled) for level in levels if tally.labelled
        }
        return cls(domain, split, tally, shares, Check.of(known, levels), list(answers))

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "verdicts": [
                {"id": v.item.id, "answer": v.item.answer, "labels": v.labels, "label": v.label}
                for v in self.verdicts
            ],
        }


def judged_table(results: Sequence[Judged]) -> str:
    """Shares as aligned text, and below them what they are worth."""
    rows = [["domain", "level", "judged share", "95 %"]]
    for result in results:
        for level, share in result.shares.items():
            first = level == next(iter(result.shares))
            name = f"{result.domain} ({result.tally.labelled})" if first else ""
            rows.append([name, level, f"{share.value:.2f}", interval(share)])
    lines = [aligned(rows)] if len(rows) > 1 else []
    for result in results:
        lines += [f"{result.domain}: {result.tally}", f"{result.domain}: {_worth(result.check)}"]
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _worth(check: Check) -> str:
    text = f"judge against the known level of the records' own responses ({check.tally}): "
    if check.accuracy is None:
        return text + "it gave no label"
    kappa = "not defined" if check.kappa is None else f"{check.kappa:.2f}"
    text += f"Cohen's κ {kappa}, accuracy {check.accuracy.value:.2f} ({interval(check.accuracy)})"
    if check.kappa is None or check.kappa < POOR:
        text += "; this judge does not see the levels: its shares say little"
    return text
