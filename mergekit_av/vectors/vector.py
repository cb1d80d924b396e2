"""Alignment vectors: the folder, what it says of itself, and their algebra."""

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergekit_av.errors import AVError
from mergekit_av.hub.source import resolve
from mergekit_av.hub.trust import refuse_foreign_files
from mergekit_av.io.atomic import write_whole
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint, non_finite
from mergekit_av.models.load import (
    buffer_names,
    check_config,
    layout_of,
    load_model,
    load_shape,
    refuse_codes,
)

from .arithmetic import Rounding, add_vectors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mergekit_av.models.layout import Layout
from .metadata import METADATA, BaseIdentity, Metadata


class Combination:
    """Σ λᵢ θ_AVᵢ: a sum of alignment vectors of one base, not yet computed.

    `0.6 * legal - medical` makes one; tensors are read only when it is applied or saved.
    """

    def __init__(self, terms: list[tuple[float, "AlignmentVector"]]):
        self.terms = terms
        first = terms[0][1]
        for _, vector in terms[1:]:
            if vector.metadata.base.fingerprint != first.metadata.base.fingerprint:
                raise AVError(
                    f"{vector.folder} and {first.folder} are vectors of different bases "
                    f"({vector.metadata.base.id} and {first.metadata.base.id}): they cannot be added"
                )

    def __mul__(self, factor: float) -> "Combination":
        if not isinstance(factor, int | float):
            return NotImplemented
        if not math.isfinite(factor):
            raise AVError(f"λ must be a finite number, not {factor}")
        return Combination([(factor * coefficient, vector) for coefficient, vector in self.terms])

    __rmul__ = __mul__

    def __neg__(self) -> "Combination":
        return -1.0 * self

    def __add__(self, other: "Combination") -> "Combination":
        if not isinstance(other, Combination):
            return NotImplemented
        return Combination(self.terms + other.terms)

    def __sub__(self, other: "Combination") -> "Combination":
        return self + -other

    def __repr__(self) -> str:
        return " + ".join(f"{c:g} * {v.metadata.name!r}" for c, v in self.terms)

    @property
    def base(self) -> BaseIdentity:
        return self.terms[0][1].metadata.base

    def tensor(self, name: str) -> torch.Tensor:
        """Σ λᵢ Δᵢ of one tensor, float32, in the base's shape."""
        return torch.cat(list(self.blocks(name))).reshape(self.shapes[name])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of all tensors that one of the vectors has; another leaves them as they are."""
        return {n: info.shape for _, v in self.terms for n, info in v.checkpoint.items()}

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The same, flat, in the pieces of `Checkpoint.blocks`."""
        having = [(c, v.checkpoint) for c, v in self.terms if name in v.checkpoint]
        for deltas in zip(*(checkpoint.blocks(name) for _, checkpoint in having), strict=True):
            zero = torch.zeros(deltas[0].shape, dtype=torch.float32)
            terms = [(c, delta) for (c, _), delta in zip(having, deltas, strict=True)]
            yield add_vectors(zero, terms, name=name)

    def apply_to(
        self,
        base: "str | os.PathLike | PreTrainedModel",
        *,
        rounding: Rounding = "stochastic",
        seed: int = 0,
        transfer: bool = False,
    ) -> "PreTrainedModel":
        """θ_base + Σ λᵢ θ_AVᵢ as a transformers model (equation 3).

        Args:
            base: a folder or Hub id, loaded in its own dtype, whose fingerprint must be that of
                the vectors' base; or a model in memory, which is left as it is (a copy is
                returned). A model in memory may have any dtype and is checked by names and shapes.
            rounding, seed: as in a recipe; with the same ones, the tensors are those that
                mergekit-yaml writes where base and vectors have the same dtype. (Else mergekit
                casts the vectors first, or writes the wider dtype.)
            transfer: accept a base that the vectors were not made for.

        Raises:
            AVError: the base is another one, or has other tensors, or λ is too large for its dtype.
        """
        import copy

        from mergekit_av.models.layout import named_tensors

        if isinstance(base, str | os.PathLike):
            folder = resolve(base)
            refuse_codes(Checkpoint(folder))
            if not transfer:
                for _, vector in self.terms:
                    vector.check_base(folder)
            model = load_model(folder, dtype="auto", device="cpu")
        else:
            model = copy.deepcopy(base)
        layouts = [vector.layout(model) for _, vector in self.terms]
        tensors, layout = named_tensors(model), layouts[0]
        with torch.no_grad():
            for group in layout.units:
                base_tensors = {name: tensors[name].data for name in group.memory}
                merged = {}
                for name, value in layout.to_disk(group, base_tensors).items():
                    place = layout.place(name)
                    terms = [
                        (c, vector.checkpoint.read(other.by_place[place]).to(value.device))
                        for (c, vector), other in zip(self.terms, layouts, strict=True)
                    ]
                    merged[name] = add_vectors(
                        value, terms, name=name, rounding=rounding, seed=seed
                    )
                for name, value in layout.to_memory(group, merged).items():
                    tensors[name].copy_(value)
        return model

    def save(
        self, out: str | os.PathLike, *, name: str, dtype: str = "bfloat16", overwrite: bool = False
    ) -> "AlignmentVector":
        """Write the sum as an alignment vector of its own: folder `out`, called `name`.

        Raises:
            AVError: `out` exists and `overwrite` is off, or cannot be written.
        """
        from .extraction import write_vector

        formula = repr(self)
        return write_vector(
            out,
            name=name,
            base=self.base,
            config=self.terms[0][1].folder / "config.json",
            shapes=self.shapes,
            blocks=self.blocks,
            dtype=dtype,
            precision={"difference": f"sum of vectors: {formula}"},
            overwrite=overwrite,
        )


class AlignmentVector(Combination):
    """θ_AV = θ_aligned − θ_base (equation 1), in a folder or a Hub repository; read lazily.

        medical = AlignmentVector.open("avs/medical")
        model = (-1.2 * medical).apply_to("models/SmolLM2-135M-Instruct")

    Attributes:
        folder: where the files are.
        metadata: what alignment_vector.json says.
        checkpoint: the tensors: names, shapes, dtypes; values when read.
    """

    def __init__(self, folder: Path, metadata: Metadata):
        self.folder = folder
        self.metadata = metadata
        super().__init__([(1.0, self)])

    @classmethod
    def open(
        cls,
        source: str | os.PathLike,
        revision: str | None = None,
        *,
        token: str | bool | None = None,
    ) -> "AlignmentVector":
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
        return cls(folder, metadata)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        base: str | None = None,
    ) -> str:
        """Push the vector's folder, in one commit; see `hub.push`.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            AVError: the vector is damaged, or the Hub refuses it or cannot be reached.
        """
        from mergekit_av.export.hub import push

        return push(
            self.folder,
            repo_id,
            token=token,
            private=private,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            base=base,
        )

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder)

    def write_calibration(self, calibration: dict[str, Any]) -> None:
        """Store measured accuracies in the vector's folder: in its metadata and on its card.

        Raises:
            AVError: the folder cannot be written.
        """
        from mergekit_av.text.card import Kept

        from .card import FIGURE, vector_card

        card = self.folder / "README.md"
        kept = Kept.of(card.read_text("utf-8", errors="replace")) if card.is_file() else None
        self.metadata = replace(self.metadata, calibration=calibration)
        figure = (self.folder / FIGURE).is_file()
        write_whole(self.folder / METADATA, self.metadata.to_json())
        write_whole(card, vector_card(self.metadata, kept=kept, figure=figure))

    def is_zero(self, name: str) -> bool:
        """Whether the vector leaves this tensor of the base as it is, at any λ."""
        return not any(torch.count_nonzero(block) for block in self.checkpoint.blocks(name))

    def check(self) -> None:
        """Read every value: raise AVError for a vector that is damaged or incomplete, or whose
        metadata says something else of its tensors."""
        stored, count = self.metadata.precision["dtype"], self.metadata.statistics["weights"]
        dtypes = {str(info.dtype).removeprefix("torch.") for info in self.checkpoint.values()}
        found = sum(info.numel for info in self.checkpoint.values())
        if dtypes != {stored} or found != count:
            raise AVError(
                f"{self.folder}: its metadata speaks of {count:,} weights in {stored}, and its files "
                f"hold {found:,} in {', '.join(sorted(dtypes))}: get the vector again"
            )
        if fingerprint(self.checkpoint) != self.metadata.fingerprint:
            raise AVError(
                f"{self.folder}: the weights are not those that were written (damaged, or changed "
                "afterwards): get the vector again"
            )

    def check_finite(self) -> None:
        """Raise AVError for a vector with NaN or infinite values."""
        if names := non_finite(self.checkpoint):
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
        own = {n: info.shape for n, info in self.checkpoint.items()}
        lacking = set(shapes) - set(own)
        unread = _unread(base) if lacking else set()
        for name in sorted(set(shapes) | set(own)):
            if shapes.get(name) != own.get(name) and name not in lacking & unread:
                raise AVError(
                    f"{self.folder} does not fit {where}: {name} is {own.get(name) or 'missing'} in "
                    f"the vector and {shapes.get(name) or 'missing'} in the base"
                )

    def layout(self, model: "PreTrainedModel") -> "Layout":
        """What becomes of the vector's tensors in a model.

        Beyond the model's weights a vector may hold tied ones by their other names, tensors it leaves
        as they are, and buffers of old checkpoints, which nothing reads.

        Raises:
            AVError: the model has other weights, or they have other shapes.
        """
        from mergekit_av.models.layout import Layout

        layout = Layout.of(model, self.checkpoint)
        misfits = [(name, shape, wanted) for name, shape, wanted in layout.misshapen]
        misfits += [(name, "missing", layout.shapes[name]) for name in layout.missing]
        buffers = buffer_names(model)
        misfits += [
            (name, self.checkpoint[name].shape, "missing")
            for name in sorted(layout.ignored)
            if name.rpartition(".")[2] not in buffers and not self.is_zero(name)
        ]
        misfits += [
            (name, "another difference", f"tied to {other}")
            for name, other in self._ties(layout)
            if not torch.equal(self.checkpoint.read(name), self.checkpoint.read(other))
        ]
        for name, own, wanted in sorted(misfits, key=lambda misfit: misfit[0]):
            raise AVError(
                f"{self.folder} does not fit the model: {name} is {own} in the vector and {wanted} "
                "in the model"
            )
        return layout

    def limits(self) -> str | None:
        """Why nothing but a merge can be made of the vector; None where everything can."""
        try:
            self.layout(load_shape(self.folder)).check_reversible()
        except AVError as error:
            return error.message
        return None

    def _ties(self, layout: "Layout") -> Iterator[tuple[str, str]]:
        """Tensors that stand for the same weight of the model as another one, and the other."""
        for name in self.checkpoint:
            place = layout.place(name)
            if place is not None and (other := layout.by_place[place]) != name:
                yield name, other

    def __repr__(self) -> str:
        return f"AlignmentVector({self.metadata.name!r}, base={self.metadata.base.id!r})"


def _unread(checkpoint: Checkpoint) -> set[str]:
    """The tensors of a base that nothing reads; none where its config.json does not tell."""
    try:
        return layout_of(checkpoint).ignored
    except AVError:
        return set()
