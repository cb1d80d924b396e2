"""Alignment vectors and their algebra: sums, a sum on a model, a sum as a vector of its own."""

import copy
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergekit_av.errors import AVError
from mergekit_av.hub import upload
from mergekit_av.hub.source import resolve
from mergekit_av.io.atomic import write_whole
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.models.layout import named_tensors
from mergekit_av.models.load import load_model, refuse_codes
from mergekit_av.text.card import Kept

from .arithmetic import Rounding, add_vectors
from .card import FIGURE, vector_card
from .delta import Delta
from .factored_sum import FactoredSum
from .low_rank_delta import LowRankDelta
from .low_rank_writing import write_low_rank
from .metadata import METADATA, BaseIdentity, Metadata
from .origin import Origin
from .publish import prepare_vector
from .stored import StoredVector
from .writing import CARD, write_vector

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        """Shapes by name, of all tensors that one of the vectors has; the others leave them as they are."""
        return {name: shape for _, v in self.terms for name, shape in v.delta.shapes().items()}

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Yield Σ λᵢ Δᵢ of one tensor, float32, flat, in the pieces of `Checkpoint.blocks`."""
        having = [(c, v.delta) for c, v in self.terms if name in v.delta.names()]
        for deltas in zip(*(delta.blocks(name) for _, delta in having), strict=True):
            zero = torch.zeros(deltas[0].shape, dtype=torch.float32)
            terms = [(c, delta) for (c, _), delta in zip(having, deltas, strict=True)]
            yield add_vectors(zero, terms, name=name)

    def origin(self) -> Origin:
        """Return what the sum is a difference to."""
        return Origin(self.base)

    def difference(self) -> str:
        """Return the sum in words."""
        return f"sum of vectors: {self!r}"

    def apply_to(
        self,
        base: "str | os.PathLike | PreTrainedModel",
        *,
        rounding: Rounding = "stochastic",
        seed: int = 0,
        transfer: bool = False,
    ) -> "PreTrainedModel":
        """Return θ_base + Σ λᵢ θ_AVᵢ as a transformers model (equation 3).

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
                    place = layout.places[name]
                    terms = [
                        (c, vector.delta.dense(other.by_place[place], value.device))
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

        A sum of low-rank vectors is one of the sum of their ranks: [λ₁B₁ λ₂B₂]·[A₁; A₂].

        Raises:
            AVError: `out` exists and `overwrite` is off, or cannot be written.
        """
        config = self.terms[0][1].folder / "config.json"
        low_rank = [(c, v.delta) for c, v in self.terms if isinstance(v.delta, LowRankDelta)]
        if len(low_rank) == len(self.terms):
            total = FactoredSum(low_rank, self.origin(), self.difference())
            write_low_rank(out, total, name=name, config=config, dtype=dtype, overwrite=overwrite)
        else:
            write_vector(
                out,
                self,
                name=name,
                config=config,
                dtype=dtype,
                precision={"difference": self.difference()},
                overwrite=overwrite,
            )
        return AlignmentVector.open(out)


class AlignmentVector(Combination, StoredVector):
    """θ_AV = θ_aligned − θ_base (equation 1), in a folder or a Hub repository; read lazily.

        medical = AlignmentVector.open("avs/medical")
        model = (-1.2 * medical).apply_to("models/SmolLM2-135M-Instruct")

    Attributes:
        folder: where the files are.
        metadata: what alignment_vector.json says.
        delta: the tensors, however they are stored.
    """

    def __init__(self, folder: Path, metadata: Metadata, delta: Delta):
        StoredVector.__init__(self, folder, metadata, delta)
        Combination.__init__(self, [(1.0, self)])

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        base: str | None = None,
        **options: Any,
    ) -> str:
        """Push the vector's folder, in one commit.

        Args:
            base: the Hub id (`id@revision`) that its base has, where it was made of a folder.
            options: see `hub.upload.push`.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            AVError: the vector is damaged, or the Hub refuses it or cannot be reached.
        """
        return upload.push(
            lambda repo_id: prepare_vector(self.folder, repo_id, base=base, token=token),
            repo_id,
            token=token,
            **options,
        )

    def write_calibration(self, calibration: dict[str, Any]) -> None:
        """Store measured accuracies in the vector's folder: in its metadata and on its card.

        Raises:
            AVError: the folder cannot be written.
        """
        card, figure = self.folder / CARD, (self.folder / FIGURE).is_file()
        kept = Kept.at(card)
        self.metadata = replace(self.metadata, calibration=calibration)
        write_whole(self.folder / METADATA, self.metadata.to_json())
        write_whole(card, vector_card(self.metadata, kept=kept, figure=figure))

    def __repr__(self) -> str:
        return f"AlignmentVector({self.metadata.name!r}, base={self.metadata.base.id!r})"
