"""The calibration that a sweep writes into a vector's folder, for Knobs and the model card."""

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from mergekit_av.errors import AVError
from mergekit_av.io.atomic import write_whole
from mergekit_av.vectors.card import FIGURE
from mergekit_av.vectors.vector import AlignmentVector

from .calibration import for_card
from .result import Sweep

# What an AV's metadata says of how it was calibrated, as the report of the sweep does.
SHARED = ("dtype", "rounding", "decoding")


def check_card(name: str, vector: AlignmentVector, calibrated: Collection[str], base: str) -> None:
    """Raise AVError, before anything is measured, where a vector could get no calibration.

    Args:
        name: of the vector in the sweep.
        calibrated: vectors of whose own domains validation records are scored.
        base: fingerprint of the base that λ is measured on.
    """
    why = None
    if name not in calibrated:
        why = f"no validation records of a domain {name!r} are scored"
    elif vector.metadata.base.fingerprint != base:
        why = "λ would be measured on another base than its own"
    elif vector.folder.is_relative_to(constants.HF_HUB_CACHE):
        why = "it is in the Hub's cache; download it to a folder (hf download ID --local-dir DIR)"
    elif not os.access(vector.folder, os.W_OK):
        why = f"{vector.folder} cannot be written"
    if why:
        raise AVError(f"--write-card has nothing to write for {name!r}: {why}")


def write_card(
    vector: AlignmentVector,
    sweep: Sweep,
    provenance: Mapping[str, Any],
    records: Mapping[str, int],
    own_records: bool,
    out: Path,
) -> None:
    """Write a sweep's calibration and figure into a vector's folder.

    Args:
        vector: the one that was measured.
        provenance: how it was measured (`SweepResult`).
        records: split → number of records scored in the vector's own domain.
        own_records: whether these are the user's, rather than those of a built-in domain.
        out: folder of the report, with the figure.

    Raises:
        AVError: the sweep has no calibration, or the folder holds another vector by now, or cannot
            be written.
    """
    if sweep.calibration is None:
        raise AVError(f"no validation records of a domain {sweep.vector!r} are scored")
    about = {
        "domain": sweep.domain,
        "records": dict(records),
        "own_records": own_records,
        "base": provenance["base fingerprint"],
        **{name: provenance[name] for name in SHARED},
        "lambdas": sweep.lambdas,
        "spill": [
            {"lambda": found.value, "into": found.others(sweep.domain), **asdict(found.spill)}
            for found in sweep.specificities
            if found.spill
        ],
        "versions": provenance["versions"],
    }
    # What is there now: hours ago it may have been another, or have had another card.
    found = type(vector).open(vector.folder)
    if found.metadata.fingerprint != vector.metadata.fingerprint:
        raise AVError(
            f"{vector.folder} is not the vector any more that was measured: its card stays as it is"
        )
    write_whole(vector.folder / FIGURE, (out / FIGURE).read_bytes())
    found.write_calibration(for_card(sweep.calibration, sweep.usable_range, about))
