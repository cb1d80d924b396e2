"""Agreement on levels: of annotators with one another, of a judge with what is known."""

from collections.abc import Sequence

Confusion = dict[str, dict[str, int]]


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Cohen's κ of two sequences of labels of the same items: 1 is full agreement, 0 what chance
    gives; None where it is not defined, because there are no items or all labels are the same."""
    from sklearn.metrics import cohen_kappa_score

    if len({*one, *other}) < 2:
        return None
    return float(cohen_kappa_score(one, other))


def confusion(known: Sequence[str], chosen: Sequence[str], levels: Sequence[str]) -> Confusion:
    """Known level → chosen level → number of items (the paper's table 7, in counts)."""
    from sklearn.metrics import confusion_matrix

    if not known:
        return {level: dict.fromkeys(levels, 0) for level in levels}
    counts = confusion_matrix(known, chosen, labels=list(levels)).tolist()
    return {
        level: dict(zip(levels, row, strict=True))
        for level, row in zip(levels, counts, strict=True)
    }


def percent(counts: Confusion) -> list[list[str]]:
    """Cells of the matrix in percent of each row, under a head; empty where a row has no items."""
    rows = [["", *counts]]
    for level, chosen in counts.items():
        total = sum(chosen.values())
        rows.append([level, *(f"{100 * n / total:.2f}" if total else "" for n in chosen.values())])
    return rows
