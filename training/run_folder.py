"""The folder of a run, which a training keeps until its vector is written.

    settings.json    what a run must share with the one that it continues
    data/            preference pairs; TRL caches tokens and reference log-probabilities beside them
    checkpoint-N/    see checkpoints.py
    history.json     how the aligned model came about
    aligned.json     the files of the aligned model
    aligned/         the aligned model: where it is, the training is through

The folder and `aligned` appear whole or not at all, so that a run can be continued from wherever it
was killed. One process at a time has a run: see `Run.locked`. What somebody else puts into the folder
is none of the run, and stays.
"""

import contextlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars, enable_progress_bars, load_from_disk

from mergekit_av.errors import AVError
from mergekit_av.io.atomic import write_whole
from mergekit_av.io.folders import Kind, entries, remove, remove_whole, whole_folder
from mergekit_av.io.json import read_json
from mergekit_av.io.locks import locked
from mergekit_av.io.temporary import check_writable

from .checkpoints import discard_incomplete

SETTINGS, DATA, HISTORY, ALIGNED = "settings.json", "data", "history.json", "aligned"
# Every run has these settings: other folders have a settings.json as well.
TELLING = {"base", "domain", "pairs", "records", "patience", "processes", "learning_rate"}
FILES = "aligned.json"
# With the Trainer's logs.
OF_RUN = re.compile(
    rf"{'|'.join(map(re.escape, (SETTINGS, HISTORY, FILES, DATA, ALIGNED)))}|checkpoint-\d+|runs"
)
CARD, OF_CARD = "README.md", "generated_from_trainer"  # TRL writes one with each checkpoint

log = logging.getLogger(__name__)


def _is_run(folder: Path) -> bool:
    settings = _read(folder / SETTINGS)
    return isinstance(settings, dict) and settings.keys() >= TELLING


def _foreign(folder: Path) -> list[Path]:
    """Return what is in a run folder that no run wrote."""
    found = [path for path in entries(folder) if not _wrote(path)]
    # An earlier release did not list the files.
    if isinstance(files := _read(folder / FILES), list) and (folder / ALIGNED).is_dir():
        found += [path for path in entries(folder / ALIGNED) if path.name not in files]
    return found


def _wrote(path: Path) -> bool:
    if path.name == CARD and path.is_file():
        return OF_CARD in path.read_text("utf-8", errors="replace")
    return bool(OF_RUN.fullmatch(path.name))


def _read(file: Path) -> Any:
    """Return what a JSON file holds; None where it is not there, or no JSON."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


RUN = Kind("a run of av-train", known=_is_run, foreign=_foreign)


class Run:
    """Manage a run folder, there or not yet there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.aligned = folder / ALIGNED

    @property
    def started(self) -> bool:
        """Tell whether a run is in the folder."""
        return _is_run(self.folder)

    @property
    def vacant(self) -> bool:
        """Tell whether nothing is in the folder's place."""
        return not self.folder.is_dir() or not entries(self.folder)

    @property
    def trained(self) -> bool:
        """Tell whether the training is through."""
        return self.aligned.is_dir()

    def locked(self) -> contextlib.AbstractContextManager:
        """Hold the run, from before it is checked until it is closed.

        Raises:
            AVError: another process has it.
        """
        return locked(self.folder, "choose another place for the run with --output_dir")

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
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise AVError(f"{self.folder} exists and is not a folder: choose another place")
        if self.started and not resume and (foreign := RUN.foreign(self.folder)):
            raise AVError(
                f"{self.folder} holds {foreign[0].relative_to(self.folder)}, which is not of the run "
                "that would be replaced: move it away, or choose another place with --output_dir"
            )
        check_writable(self.folder)

    def begin(self, settings: Mapping[str, Any], pairs: Mapping[str, list[dict]]) -> None:
        """Make the folder with the pairs of each split, in the place of any earlier run."""
        with whole_folder(self.folder, overwrite=True, kind=RUN) as folder:
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
        """Return the pairs of a split, read from their file: TRL's caches lie beside it.

        So every process, and a run that is continued, finds them in the same place.
        """
        return load_from_disk(self.folder / DATA / split)

    def finish(self, save: Callable[[Path], None], history: Mapping[str, Any]) -> None:
        """Keep the aligned model, which `save` writes to the folder it is given."""
        write_whole(self.folder / HISTORY, json.dumps(history, indent=2, allow_nan=False))
        with whole_folder(self.aligned) as folder:
            save(folder)
            files = [path.name for path in entries(folder)]
            write_whole(self.folder / FILES, json.dumps(files, indent=2))

    def history(self) -> dict[str, Any]:
        """Return how the aligned model came about, see history.py."""
        return read_json(self.folder / HISTORY)

    def close(self, keep_aligned: bool) -> None:
        """Remove the run, whose vector is written, or all that its aligned model does not need.

        What is not of the run stays.
        """
        if keep_aligned and self.started:
            for path in entries(self.folder):
                if path.name not in (SETTINGS, HISTORY, FILES, ALIGNED) and _wrote(path):
                    remove(path)
        elif left := remove_whole(self.folder, RUN):
            names = ", ".join(str(path.relative_to(self.folder.absolute())) for path in left)
            log.warning("%s is kept, for it holds what is not of the run: %s", self.folder, names)
