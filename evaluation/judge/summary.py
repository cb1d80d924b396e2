"""The summary of a judge's labels for a terminal."""

from collections.abc import Sequence

from mergekit_av.evaluation.rendering import interval
from mergekit_av.text.tables import aligned

from .tally import Agreement, JudgeResult, Tally

# Below this κ with the known levels a judge's shares say little; "moderate" begins here.
POOR = 0.4


def judge_summary(results: Sequence[JudgeResult]) -> str:
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
            f"{result.domain}: {_counts(result.tally)}",
            f"{result.domain}: {_agreement(result.check)}",
        ]
    return "\n".join(lines)


def _counts(tally: Tally) -> str:
    text = f"{_count(tally.items, 'answer')}, {_count(tally.judgements, 'judgement')}"
    if tally.unparseable:
        text += f", {tally.unparseable} of them no label"
    if tally.cut_off:
        text += f", {tally.cut_off} cut off (--judge-max-tokens)"
    if tally.judgements > tally.items:
        text += f"; {tally.disputed} answers got different labels"
    if tally.undecided:
        text += f"; {tally.undecided} answers have no label and count nowhere"
    return text


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _agreement(check: Agreement) -> str:
    text = f"judge against the known level of the records' own responses ({_counts(check.tally)}): "
    if check.accuracy is None:
        return text + "it gave no label"
    kappa = "not defined" if check.kappa is None else f"{check.kappa:.2f}"
    text += f"Cohen's κ {kappa}, accuracy {check.accuracy.value:.2f} ({interval(check.accuracy)})"
    if check.kappa is None or check.kappa < POOR:
        text += "; this judge does not see the levels: its shares say little"
    return text
