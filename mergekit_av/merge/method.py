"""The merge method `alignment_vector`: θ_base + Σᵢ λᵢ θ_AVᵢ as mergekit runs it."""

import os
from collections.abc import Hashable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods.base import (
    BasePolicy,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    OptionalTensorPolicy,
    ParameterScope,
    ParameterSpec,
    TensorGroup,
)
from pydantic import BeforeValidator

from mergekit_av.errors import AVError
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.models.load import layout_of
from mergekit_av.vectors.arithmetic import Rounding, add_vectors
from mergekit_av.vectors.card import PAPER
from mergekit_av.vectors.vector import AlignmentVector

from .architecture import check_planned
from .loader import folder_of_vector, read_through
from .planning import install
from .recipe import METHOD, read_coefficient

Coefficient = Annotated[float | None, BeforeValidator(read_coefficient)]


class AlignmentVectorMerge(GroupMergeMethod):
    """Adds alignment vectors to their base.

    Parameters of a recipe, per vector: `lambda` (or `weight`; any finite number, no default) and
    `transfer` (true where the base is meant to be another than the vector's own). For the whole
    recipe: `rounding` (`stochastic` or `nearest`) and `seed`.
    """

    spec = MergeMethodSpec(
        name=METHOD,
        pretty_name="Alignment Vectors",
        reference_url=PAPER,
        parameters=(
            ParameterSpec("lambda", Coefficient, ParameterScope.NON_BASE, default=None),
            ParameterSpec("weight", Coefficient, ParameterScope.NON_BASE, default=None),
            ParameterSpec("transfer", bool, ParameterScope.NON_BASE, default=False),
            ParameterSpec("rounding", Rounding, ParameterScope.SHARED, default="stochastic"),
            ParameterSpec("seed", int, ParameterScope.SHARED, default=0),
        ),
        contract=InputContract(base=BasePolicy.REQUIRED, min_non_base=1),
        # What no vector has stays as it is in the base.
        optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON,
    )

    def validate_inputs(
        self,
        input_ids: Sequence[Hashable],
        base_id: Hashable | None = None,
        *,
        group_name: str | None = None,
    ) -> None:
        """Check the inputs. mergekit calls this while it plans, before anything is written.

        Raises:
            AVError: an input is no alignment vector, is damaged, or does not fit the base.
        """
        super().validate_inputs(input_ids, base_id, group_name=group_name)
        base = _folder(base_id)
        if base is None:
            return
        check_planned(base_id, base)
        for input_id in input_ids:
            if isinstance(input_id, ModelReference) and input_id != base_id:
                vector = _open_checked(folder_of_vector(input_id), base)
                read_through(input_id, vector.delta)

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        name = group.metadata.name or ""
        terms = []
        for entry in group.non_base:
            coefficient = _coefficient(entry.id, parameters)
            if not parameters["transfer"][entry.id]:
                _check_base(entry.id, group.base.id)
            terms.append((coefficient, entry.tensor))
        return add_vectors(
            group.base.tensor,
            terms,
            # Copies of a tied weight are rounded alike: transformers ties no two that differ.
            name=_first_names(group.base.id).get(name, name),
            rounding=parameters["rounding"],
            seed=parameters["seed"],
        )


def register() -> None:
    """Make the method known to mergekit; a second call does nothing."""
    if METHOD not in {method.spec.name for method in merge_methods.registered_methods()}:
        merge_methods.register(AlignmentVectorMerge())
    install()


def _coefficient(vector: Hashable, parameters: dict[str, Any]) -> float:
    given = [parameters[word][vector] for word in ("lambda", "weight")]
    given = [value for value in given if value is not None]
    if len(given) != 1:
        raise AVError(f"{vector}: give exactly one of `lambda` and `weight`")
    return given[0]


def _first_names(base: Hashable) -> dict[str, str]:
    """Return the second copies of tied weights that a base stores → the copy that a model reads
    first."""
    folder = _folder(base)
    return {} if folder is None else _copies(folder, _state(folder))


@lru_cache(maxsize=8)
def _copies(folder: Path, _state: tuple) -> dict[str, str]:
    try:
        layout = layout_of(Checkpoint(folder))
    except AVError:
        return {}
    firsts = {n: layout.by_place[p] for n in layout.by_disk if (p := layout.place(n))}
    return {name: first for name, first in firsts.items() if name != first}


def _folder(reference: Hashable) -> Path | None:
    """Return where mergekit reads an input from; None for tensors that come from no folder."""
    if not isinstance(reference, ModelReference):
        return None
    return Path(LoaderCache().get(reference).index.base_path)


# mergekit asks once per tensor; what was read of a folder holds until one of its files changes.
_opened: dict[tuple, AlignmentVector] = {}
_verified: set[tuple] = set()


def _state(*folders: Path) -> tuple:
    return tuple(
        (file, stat.st_size, stat.st_mtime_ns)
        for folder in folders
        for file in _files(folder, os.stat(folder).st_mtime_ns)
        for stat in (os.stat(file),)
    )


@lru_cache
def _files(folder: Path, _changed: int) -> list[str]:
    """Return what decides what a folder holds; listed again when a file comes or goes."""
    return sorted(
        entry.path for entry in os.scandir(folder) if entry.name.endswith((".safetensors", ".json"))
    )


def _open_checked(folder: Path, base: Path) -> AlignmentVector:
    state = _state(folder, base)
    if state not in _opened:
        vector = AlignmentVector.open(folder)
        vector.check_fit(Checkpoint(base), str(base))
        vector.check()
        vector.check_finite()
        _opened[state] = vector
    return _opened[state]


def _check_base(vector: Hashable, base: Hashable) -> None:
    vector_folder, base_folder = _folder(vector), _folder(base)
    if vector_folder is None or base_folder is None:
        return
    state = _state(vector_folder, base_folder)
    if state not in _verified:
        _open_checked(vector_folder, base_folder).check_base(
            base_folder, "if the transfer is meant, add `transfer: true` to its parameters"
        )
        _verified.add(state)
