"""The configuration of a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit_av.evaluation.inputs import InputConfig


@dataclass(frozen=True, kw_only=True)
class SweepConfig(InputConfig):
    """Configure `run_sweep`.

    Attributes:
        lambdas: λ of each vector; 0 is always among them.
        prompting: whether asking in words is measured as well.
        out: folder of the report and the evaluations.
        write_card: whether each level's λ is stored in the vectors' folders.
    """

    out: Path
    lambdas: Sequence[float] = tuple(tenths / 10 for tenths in range(-15, 16))
    generate: int = 8
    dtype: str = "float32"
    prompting: bool = True
    write_card: bool = False
