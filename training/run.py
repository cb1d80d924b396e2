"""The folder of a run: all that a training keeps on disk until its vector is written.

    settings.json    what a run must share with the one that it continues
    data/            preference pairs; TRL caches tokens and reference log-probabilities beside them
    checkpoint-N/    see checkpoints.py
    history.json     how the aligned model came about
    aligned/         the aligned model: where it is, the training is through

The folder and `aligned` appear whole or not at all, so that a run can be continued from wherever it
was killed.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars, enable_progress_bars, load_from_disk

from mergekit_av.errors import AVError
from mergekit_av.files import check_vacant, whole_folder, write_whole
from mergekit_av.models import read_json

from .checkpoints import discard_incomplete

SETTINGS, DATA, HISTORY, ALIGNED = "settings.json", "data", "history.json", "aligned"


class Run:
    """A run folder, there or not yet there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.aligned = folder / ALIGNED

    @property
    def started(self) -> bool:
        return (self.folder / SETTINGS).is_file()

    @property
    def vacant(self) -> bool:
        return not self.folder.is_dir() or not any(self.folder.iterdir())

    @property
    def trained(self) -> bool:
        return self.aligned.is_dir()

    def check(self, resume: bool, overwrite: bool) -> None:
        """Raise AVError where something stands in the way of the run."""
        if self.started and not (resume or overwrite):
            raise AVError(
                f"{self.folder} holds an earlier run: continue it with --resume, or start over "
                "with --overwrite"
            )
        if not (self.started or self.vacant):
            raise AVError(
                f"{self.folder} is where the run would go, and holds something else: choose "
                "another place with --output_dir"
            )
        check_vacant(self.folder, overwrite=True, marker=SETTINGS)

    def begin(self, settings: Mapping[str, Any], pairs: Mapping[str, list[dict]]) -> None:
        """Make the folder with the pairs of each split, in the place of any earlier run."""
        with whole_folder(self.folder, overwrite=True, marker=SETTINGS) as folder:
            disable_progress_bars()
            for split, rows in pairs.items():
                Dataset.from_list(rows).save_to_disk(folder / DATA / split)
            enable_progress_bars()
            write_whole(folder / SETTINGS, json.dumps(settings, indent=2))

    def resume(self, settings: Mapping[str, Any]) -> None:
        """Make sure that the run in the folder is the one that is meant, and put it in order.

        Raises:
            AVError: it was started with other settings; the first that differs is named.
        """
        before = read_json(self.folder / SETTINGS)
        for key in [*settings, *before]:
            if before.get(key) != settings.get(key):
                raise AVError(
                    f"{self.folder} was started with {key} {before.get(key)!r}, not "
                    f"{settings.get(key)!r}: resume with the same settings, or start over with "
                    "--overwrite"
                )
        discard_incomplete(self.folder)

    def pairs(self, split: str) -> Dataset:
        """The pairs of a split, read from their file: TRL's caches lie beside it.

        So every process, and a run that is continued, finds them in the same place.
        """
        return load_from_disk(self.folder / DATA / split)

    def finish(self, save: Callable[[Path], None], history: Mapping[str, Any]) -> None:
        """Keep the aligned model, which `save` writes to the folder it is given."""
        write_whole(self.folder / HISTORY, json.dumps(history, indent=2, allow_nan=False))
        with whole_folder(self.aligned) as folder:
            save(folder)

    def history(self) -> dict[str, Any]:
        return read_json(self.folder / HISTORY)

    def close(self, keep_aligned: bool) -> None:
        """The vector is written: remove the run, or all that its aligned model does not need."""
        if keep_aligned and self.started:
            for path in self.folder.iterdir():
                if path.name not in (SETTINGS, HISTORY, ALIGNED):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        # Exchanged for an empty folder in one step, so that no half of a run is left.
        with whole_folder(self.folder, overwrite=True, marker=SETTINGS):
            pass
        self.folder.rmdir()
