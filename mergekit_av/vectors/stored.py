"""An alignment vector as it lies in a folder: its parts, and what makes it sound."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from mergekit_av.errors import AVError
from mergekit_av.hub.source import resolve
from mergekit_av.hub.trust import refuse_foreign_files
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.models.layout import Layout
from mergekit_av.models.load import (
    buffer_names,
    check_config,
    load_shape,
    refuse_codes,
    unread_names,
)

from .delta import Delta
from .kinds import open_delta
from .metadata import Metadata

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(eq=False)
class StoredVector:
    """The parts of a vector's folder.

    Attributes:
        folder: where the files are.
        metadata: what alignment_vector.json says.
        delta: the tensors, however they are stored.
    """

    folder: Path
    metadata: Metadata
    delta: Delta

    @classmethod
    def open(
        cls,
        source: str | os.PathLike,
        revision: str | None = None,
        *,
        token: str | bool | None = None,
    ) -> Self:
        """Open a folder or a Hub id (`revision`, or `id@revision`, where one is meant).

        Raises:
            AVError: there is none, it is no alignment vector that this version reads, or it brings
                pickles, code, or links that lead out of its folder.
        """
        folder = resolve(source, revision, token)
        metadata = Metadata.read(folder)
        refuse_foreign_files(folder)
        if (folder / "config.json").is_file():
            check_config(folder / "config.json", known=False)
        return cls(folder, metadata, open_delta(folder))

    def check(self) -> None:
        """Read every value; raise AVError for a vector that is damaged or incomplete, or whose
        metadata says something else of its tensors."""
        stored, count = self.metadata.precision["dtype"], self.metadata.statistics["weights"]
        dtypes = self.delta.dtypes()
        found = sum(torch.Size(shape).numel() for shape in self.delta.shapes().values())
        if dtypes != {stored} or found != count:
            raise AVError(
                f"{self.folder}: its metadata speaks of {count:,} weights in {stored}, and its files "
                f"hold {found:,} in {', '.join(sorted(dtypes))}: get the vector again"
            )
        if self.delta.fingerprint() != self.metadata.fingerprint:
            raise AVError(
                f"{self.folder}: the weights are not those that were written (damaged, or changed "
                "afterwards): get the vector again"
            )

    def check_finite(self) -> None:
        """Raise AVError for a vector with NaN or infinite values."""
        if names := self.delta.non_finite():
            raise AVError(f"{self.folder}: {names[0]} has NaN or infinite values: make it again")

    def check_base(self, folder: Path, remedy: str = "pass the base it was made for") -> None:
        """Raise AVError unless `folder` holds the vector's own base."""
        found, wanted = fingerprint(Checkpoint(folder)), self.metadata.base
        if found != wanted.fingerprint:
            raise AVError(
                f"{self.folder} is a vector of {wanted.id} ({wanted.fingerprint[:8]}), not of "
                f"{folder} ({found[:8]}): {remedy}"
            )

    def check_fit(self, base: Checkpoint, where: str) -> None:
        """Raise AVError unless the vector can be added to a base, tensor by tensor.

        Its tensors have the names and shapes of the base's. It may lack those that nothing reads.
        """
        refuse_codes(base)
        shapes = {n: info.shape for n, info in base.items() if info.dtype.is_floating_point}
        own = self.delta.shapes()
        lacking = set(shapes) - set(own)
        unread = unread_names(base) if lacking else frozenset()
        for name in sorted(set(shapes) | set(own)):
            if shapes.get(name) != own.get(name) and name not in lacking & unread:
                raise AVError(
                    f"{self.folder} does not fit {where}: {name} is {own.get(name) or 'missing'} in "
                    f"the vector and {shapes.get(name) or 'missing'} in the base"
                )

    def layout(self, model: "PreTrainedModel") -> Layout:
        """Return where each of the vector's tensors goes in a model.

        Beyond the model's weights a vector may hold tied ones by their other names, tensors it leaves
        as they are, and buffers of old checkpoints, which nothing reads.

        Raises:
            AVError: the model has other weights, or they have other shapes.
        """
        layout = Layout.of(model, self.delta.shapes())
        misfits: list[tuple[str, object, object]] = [
            (name, shape, wanted) for name, shape, wanted in layout.misshapen
        ]
        misfits += [(name, "missing", layout.shapes[name]) for name in layout.missing]
        buffers = buffer_names(model)
        misfits += [
            (name, self.delta.shape(name), "missing")
            for name in sorted(layout.ignored)
            if name.rpartition(".")[2] not in buffers and not self.delta.is_zero(name)
        ]
        misfits += [
            (name, "another difference", f"tied to {other}")
            for name, other in self._ties(layout)
            if not torch.equal(self.delta.dense(name), self.delta.dense(other))
        ]
        for name, own, wanted in sorted(misfits, key=lambda misfit: misfit[0]):
            raise AVError(
                f"{self.folder} does not fit the model: {name} is {own} in the vector and {wanted} "
                "in the model"
            )
        return layout

    def shape_of_base(self) -> "PreTrainedModel":
        """Return the base as its config.json describes it, without weights (`load_shape`).

        Raises:
            AVError: config.json is of no causal LM.
        """
        return load_shape(self.folder, tensors=len(self.delta.names()))

    def limits(self) -> str | None:
        """Return why nothing but a merge can be made of the vector; None where everything can."""
        try:
            self.layout(self.shape_of_base()).check_reversible()
        except AVError as error:
            return error.message
        return None

    def _ties(self, layout: Layout) -> Iterator[tuple[str, str]]:
        """Tensors that stand for the same weight of the model as another one, and the other."""
        for name in self.delta.names():
            place = layout.place(name)
            if place is not None and (other := layout.by_place[place]) != name:
                yield name, other
