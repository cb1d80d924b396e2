"""One training: of which base, on what, to where."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import Record, require_splits
from mergekit_av.errors import AVError
from mergekit_av.io.folders import check_vacant
from mergekit_av.io.locks import locked
from mergekit_av.vectors.metadata import METADATA
from mergekit_av.vectors.vector import AlignmentVector
from mergekit_av.vectors.writing import VECTOR

from .lora import Arguments
from .pairs import LAMBDA, Pairing, preference_pairs, spectrum_pairs
from .run_folder import Run
from .settings import HOLD, PATIENCE

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Job:
    """Describe one training.

    Attributes:
        out: the AV folder to write.
        lambdas: at which λ it is trained; the paper's is 1 alone. See spectrum.py.
        held: domain → records on which the vector shall change nothing: those of the train split
            while it is trained, those of the validation split where that is validated. See drift.py.
        hold: the weight of these in the loss.
        arguments: of TRL; `output_dir` is the run folder, see run.py.
        dtype: the vector's.
        keep_aligned: keep the aligned checkpoint, in the run folder's `aligned`.
        resume: continue the run that is there, if one is; keep a vector that is done.
        overwrite: replace a vector that is there; without `resume`, a run as well.
        joint: domain → the level that is wanted there, where the records are of several domains.
        dataset: the Hub id of the records, where they come from there.
    """

    base: str
    domain: Domain
    records: Sequence[Record]
    out: Path
    arguments: Arguments
    pairing: Pairing = "adjacent"
    lambdas: tuple[float, ...] = (1.0,)
    held: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    hold: float = HOLD
    dtype: str = "bfloat16"
    patience: int = PATIENCE
    keep_aligned: bool = False
    resume: bool = False
    overwrite: bool = False
    joint: dict[str, str] | None = None
    dataset: str | None = None

    @property
    def run(self) -> Run:
        """Return the folder of its run."""
        return Run(Path(self.arguments.output_dir))

    @property
    def at_one_only(self) -> bool:
        """Tell whether it is trained as the paper does, at λ = 1 alone."""
        return self.lambdas == (1.0,)

    @property
    def done(self) -> bool:
        """Tell whether nothing is to be resumed: the vector is there, and no other run than its own."""
        if self.overwrite or not self.resume or not (self.out / METADATA).is_file():
            return False
        if not self.run.started:
            return True
        vector = AlignmentVector.open(self.out)
        return self.run.trained and vector.metadata.training == self.run.history()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run and the vector's folder, from before they are looked at to the end.

        Raises:
            AVError: another process has one of them, or they are one.
        """
        if not self.out.exists():
            self._keep_apart()
        with self.run.locked(), locked(self.out, "choose another folder with --out"):
            yield

    def check(self) -> None:
        """Raise AVError for what can be seen to be wrong before anything is computed."""
        if self.done:
            return
        require_splits(self.records, *SPLITS, source=self.domain.name)
        check_vacant(self.out, self.overwrite, VECTOR)
        self._keep_apart()
        self.run.check(self.resume, self.overwrite)

    def pairs(self, split: str) -> list[dict[str, Any]]:
        """Return the preference pairs of a split, as rows for the trainer."""
        records = [record for record in self.records if record.split == split]
        if self.at_one_only:
            at_one = {LAMBDA: 1.0} if self.held else {}
            return [{**row, **at_one} for row in preference_pairs(records, self.pairing)]
        return spectrum_pairs(records, self.lambdas, self.pairing)

    def count(self, split: str) -> int:
        """Return the number of records in a split."""
        return sum(record.split == split for record in self.records)

    def _keep_apart(self) -> None:
        """Raise AVError where the run would be in the vector's folder, which is to be replaced."""
        out, run = self.out.resolve(), self.run.folder.resolve()
        if out == run or out in run.parents:
            raise AVError(f"the run would be in {self.out}: choose another --out, or --output_dir")
