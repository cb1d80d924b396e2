"""The metadata of an alignment vector: the schema of alignment_vector.json."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mergekit_av.errors import AVError
from mergekit_av.io.json import read_json
from mergekit_av.io.yaml import refuse_unfolding

METADATA = "alignment_vector.json"
# Of vectors of whole tensors, and of those with factors.
WHOLE_TENSORS, LOW_RANK = 1, 2
# What the card and av-check show of every vector.
REQUIRED = {"precision": {"dtype", "difference"}, "statistics": {"weights", "norm", "unchanged"}}


@dataclass(frozen=True)
class BaseIdentity:
    """Which model a vector belongs to. Only the fingerprint decides; the id is for people."""

    id: str
    fingerprint: str
    revision: str | None = None


@dataclass(frozen=True)
class StoredTensor:
    """How a low-rank vector has one tensor of its base; neither `layer` nor `whole`: unchanged.

    Attributes:
        shape: the base's.
        layer: the module of the model whose weight it is, of which there are factors.
        transposed: whether the weight is the transpose of their product.
        whole: whether it is stored as it is.
    """

    shape: tuple[int, ...]
    layer: str | None = None
    transposed: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Metadata:
    """What alignment_vector.json says.

    Attributes:
        name: the dimension, e.g. `medical`.
        base: the model that the vector is a difference to.
        fingerprint: of the vector's own tensors; tells a damaged copy.
        levels: the dimension's levels, best first; empty where unknown.
        precision: stored dtype, and between which weights the difference was taken.
        training: the settings and losses of the training, or None.
        statistics: norms and shares of zeros, overall and per tensor.
        calibration: measured accuracies at some λ, or None.
        created_with: versions of the packages that wrote the vector.
        low_rank: of a vector with factors, their `rank` and the `tensors`, see `StoredTensor`.
        format_version: of this file.
    """

    name: str
    base: BaseIdentity
    fingerprint: str
    levels: list[str] = field(default_factory=list)
    precision: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    created_with: dict[str, str] = field(default_factory=dict)
    low_rank: dict[str, Any] | None = None
    format_version: int = WHOLE_TENSORS

    @classmethod
    def read(cls, folder: Path) -> "Metadata":
        """Raises AVError for a folder without metadata, of another format, or incomplete."""
        if not (folder / METADATA).is_file():
            remedy = ""
            if (folder / "config.json").is_file():
                remedy = ": it looks like a whole model; make a vector of it with `av-extract BASE MODEL OUT`"
            raise AVError(f"{folder} is no alignment vector (it has no {METADATA}){remedy}")
        content = read_json(folder / METADATA)
        refuse_unfolding(content, folder / METADATA)
        version = content.get("format_version")
        if version not in (WHOLE_TENSORS, LOW_RANK) or isinstance(version, bool):
            raise AVError(
                f"{folder} has format version {version!r}, this mergekit-av reads {WHOLE_TENSORS} and "
                f"{LOW_RANK}: update mergekit-av or make the vector again"
            )
        try:
            content["base"] = BaseIdentity(**content["base"])
            metadata = cls(**content)
            for part, keys in REQUIRED.items():
                if not isinstance(content[part], dict):
                    raise TypeError(f"{part} is no mapping")
                for key in sorted(keys - set(content[part])):
                    raise KeyError(f"{part}: {key}")
        except (KeyError, TypeError) as error:
            raise AVError(
                f"{folder / METADATA} is incomplete or has unknown keys: {error}"
            ) from None
        for what in metadata.misfits():
            raise AVError(f"{folder / METADATA}: {what} is missing, or not what it must be")
        return metadata

    @cached_property
    def stored_tensors(self) -> dict[str, StoredTensor]:
        """Tensor of the base → how a low-rank vector has it.

        Raises:
            AVError: the metadata does not say, or says something impossible.
        """
        try:
            tensors = (self.low_rank or {})["tensors"]
            found = {
                name: StoredTensor(**{**each, "shape": tuple(map(int, each["shape"]))})
                for name, each in tensors.items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AVError(
                f"{METADATA} of {self.name!r} does not say what the factors are of: get the vector again"
            ) from error
        for name, tensor in found.items():
            sound = isinstance(tensor.layer, str | None) and not (tensor.layer and tensor.whole)
            if not sound or (tensor.layer and len(tensor.shape) != 2):
                raise AVError(f"{METADATA} of {self.name!r} contradicts itself about {name}")
        return found

    def misfits(self) -> Iterator[str]:
        """Yield what in the metadata has another type than it must have.

        The calibration is left to those who need it: a merge does not.
        """
        base, statistics = self.base, self.statistics
        texts = {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "base.fingerprint": base.fingerprint,
            "base.id": base.id,
            "precision.dtype": self.precision["dtype"],
            "precision.difference": self.precision["difference"],
        }
        yield from (key for key, value in texts.items() if not isinstance(value, str))
        if not isinstance(base.revision, str | None):
            yield "base.revision"
        if type(statistics["weights"]) is not int:
            yield "statistics.weights"
        for key in ("norm", "unchanged", "base_norm"):
            value = statistics.get(key)
            if not is_number(value) and not (key == "base_norm" and value is None):
                yield f"statistics.{key}"
        if not isinstance(self.levels, list) or not all(isinstance(x, str) for x in self.levels):
            yield "levels"
        if not isinstance(self.training, dict | None):
            yield "training"
        if not isinstance(self.created_with, dict):
            yield "created_with"
        if (self.low_rank is None) == (self.format_version == LOW_RANK):
            yield "low_rank"

    def calibrated(self, level: str) -> float:
        """Return the λ that was measured to bring out a level (`av-sweep --write-card`).

        Raises:
            AVError: nothing was measured, there is no such level, or no usable λ brings it out.
        """
        if self.calibration is None:
            raise AVError(
                f"the vector {self.name!r} has no calibration: run `av-sweep --write-card`, or "
                "give λ as a number"
            )
        try:
            levels = {name: found["lambda"] for name, found in self.calibration["levels"].items()}
        except (KeyError, TypeError, AttributeError):
            levels = {level: math.nan}
        if level not in levels:
            raise AVError(f"{self.name!r} has no level {level!r}: there are {', '.join(levels)}")
        value = levels[level]
        if value is None:
            raise AVError(
                f"no λ in the usable range of {self.name!r} makes {level!r} dominant: give λ as a "
                "number"
            )
        if not is_number(value):
            raise AVError(
                f"the calibration of {self.name!r} is damaged: run `av-sweep --write-card` again"
            )
        return float(value)

    def to_json(self) -> str:
        content = asdict(self)
        if self.low_rank is None:
            del content["low_rank"]
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def is_number(value: Any) -> bool:
    """Return whether something from JSON is a finite number; truth values are none."""
    return type(value) in (int, float) and math.isfinite(value)
