"""Agreement of annotators, with one another or with the levels that responses were made for."""

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_av.errors import AVError
from mergekit_av.io.atomic import check_file, write_whole
from mergekit_av.stats import Confusion, cohen_kappa, confusion, percent
from mergekit_av.synthesis.folder import DataFolder
from mergekit_av.text.tables import aligned

from .items import ANNOTATIONS, Choice, read_annotations


@dataclass(frozen=True)
class Pair:
    """Hold the agreement of two annotators.

    Attributes:
        shared: items that both judged.
        kappa: Cohen's, on these; None where it is not defined.
    """

    names: tuple[str, str]
    shared: int
    kappa: float | None


@dataclass(frozen=True)
class Agreement:
    """Hold the agreement of all annotators.

    Attributes:
        annotators: name → number of items.
        pairs: each two of them.
        kappa: mean over the pairs; None where no pair has one.
        confusion: intended level → chosen level → number of judgements of all annotators (the
            paper's table 7).
    """

    annotators: dict[str, int]
    pairs: list[Pair]
    kappa: float | None
    confusion: Confusion

    @property
    def accuracy(self) -> float:
        """Return the share of the judgements that choose the intended level."""
        right = sum(chosen[level] for level, chosen in self.confusion.items())
        return right / sum(self.annotators.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "annotators": self.annotators,
            "pairs": [
                {"annotators": pair.names, "shared": pair.shared, "kappa": pair.kappa}
                for pair in self.pairs
            ],
            "kappa": self.kappa,
            "accuracy": self.accuracy,
            "confusion": self.confusion,
        }

    def __str__(self) -> str:
        rows = [["annotators", "shared", "Cohen's κ"]]
        rows += [[", ".join(p.names), str(p.shared), _number(p.kappa)] for p in self.pairs]
        rows.append(["average", "", _number(self.kappa)])
        if not self.pairs:
            [only] = self.annotators
            text = f"Only {only} has annotated: Cohen's κ needs two (--annotator)."
        else:
            text = aligned(rows)
        count = sum(self.annotators.values())
        return (
            f"{text}\n\nintended level (rows) and chosen level (columns), % of {count} judgements, "
            f"{100 * self.accuracy:.2f} % as intended\n{aligned(percent(self.confusion))}"
        )


def measure_agreement(path: Path, json_file: Path | None = None) -> Agreement:
    """Measure how far the annotators of a data folder agree.

    Args:
        json_file: to write everything to.

    Raises:
        AVError: see `DataFolder`, `read_annotations` and `agreement`; the file cannot be written.
    """
    data = DataFolder(path)
    if json_file:
        check_file(json_file)
    found = agreement(read_annotations(data.path / ANNOTATIONS), list(data.domain.levels))
    if json_file:
        content = {"domain": data.domain.name, **found.as_json()}
        write_whole(json_file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return found


def agreement(choices: Mapping[str, Sequence[Choice]], levels: Sequence[str]) -> Agreement:
    """Measure how far annotators agree.

    Args:
        choices: annotator → what was chosen, at least one item.
        levels: of the domain.

    Raises:
        AVError: nobody has chosen anything, or a level is none of the domain's.
    """
    if not choices:
        raise AVError("nobody has annotated yet: av-synth annotate … --annotator NAME")
    for name, some in choices.items():
        strange = {level for one in some for level in (one.intended, one.chosen)} - {*levels}
        if strange:
            raise AVError(
                f"{name} has annotated {min(strange)!r}, which is none of the levels "
                f"{', '.join(levels)}: has the domain changed?"
            )
    pairs = [_pair(choices, *names) for names in itertools.combinations(choices, 2)]
    defined = [pair.kappa for pair in pairs if pair.kappa is not None]
    every = [choice for some in choices.values() for choice in some]
    return Agreement(
        annotators={name: len(some) for name, some in choices.items()},
        pairs=pairs,
        kappa=statistics.mean(defined) if defined else None,
        confusion=confusion([c.intended for c in every], [c.chosen for c in every], levels),
    )


def _pair(choices: Mapping[str, Sequence[Choice]], one: str, other: str) -> Pair:
    first, second = ({c.item: c.chosen for c in choices[name]} for name in (one, other))
    shared = [item for item in first if item in second]
    kappa = cohen_kappa([first[item] for item in shared], [second[item] for item in shared])
    return Pair((one, other), len(shared), kappa)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
