"""λ on a live model: base + Σ λᵢ θ_AVᵢ in place, set as often as one likes."""

import contextlib
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from mergekit_av.errors import AVError
from mergekit_av.models.layout import Group, Layout, named_tensors
from mergekit_av.vectors.arithmetic import Rounding, add_vectors, check_rounding
from mergekit_av.vectors.factors import Factors
from mergekit_av.vectors.vector import AlignmentVector

from .rows import added_per_row
from .weights import as_merged, check_base, check_plain, file_identity, moves, trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Knobs:
    """One λ per alignment vector, on a transformers model in memory.

        knobs = Knobs(model, medical="avs/medical", legal="avs/legal")
        knobs.set(medical=-1.2, legal=0.6)
        model.generate(...)
        with knobs.at(medical="expert"):    # a level's calibrated λ, for a block
            model.generate(...)
        knobs.reset()

    Every setting is computed from a copy of the base, so nothing drifts and λ = 0 is the base bit
    for bit. A setting gives the bytes that `mergekit-yaml` writes on the same device for a recipe
    with the same vectors in the same order, λ, `rounding` and `seed`, and the model's dtype as
    `dtype`. Weights that no changed λ moves are not touched. The model stays a plain transformers
    model: nothing is wrapped or hooked.

    Memory: a copy of the base, beside the model. A low-rank vector takes what its factors take, and
    they are multiplied at each setting, a tensor at a time. With `resident` each other vector takes
    what its file takes (in a model of a narrower dtype, as much as the model), on the device of the
    weights it goes to. Without, vectors stay mapped files on disk: no memory but what the system lends to
    cache them, and a setting takes longer where they are not cached or the model is on an
    accelerator. Mapped files may be deleted or replaced, but must not be changed in place.

    `set`, `at` and `reset` of several threads wait for one another (`at` until its block ends). A
    generation that runs in another thread meanwhile is the caller's to keep apart: it would see
    weights change under it.

    Nobody else may change the model's weights while it has knobs. Training, `load_state_dict`,
    `.to()` and other knobs are noticed at the next setting, which then fails; writing to a weight's
    `.data` is not noticed (some optimizers do), and is overwritten.

    Args:
        model: a causal LM on one or several devices, in float32, bfloat16 or float16. It must hold
            its base weights.
        vectors: name → vector, its folder or its Hub id, for names that are no Python identifiers.
        rounding, seed: as in a recipe.
        transfer: accept a model that the vectors were not made for.
        resident: keep the vectors in memory.
        named: name → vector, as keywords.

    Raises:
        AVError: a vector is damaged or of another base; the model is quantised, carries adapters,
            has weights that are not in memory, or is of another architecture.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        vectors: Mapping[str, "AlignmentVector | str | os.PathLike"] | None = None,
        /,
        *,
        rounding: Rounding = "stochastic",
        seed: int = 0,
        transfer: bool = False,
        resident: bool = True,
        **named: "AlignmentVector | str | os.PathLike",
    ):
        given = {**(vectors or {}), **named}
        if not given:
            raise AVError('Knobs needs a vector: Knobs(model, medical="avs/medical")')
        check_rounding(rounding)
        self.rounding, self.seed = rounding, seed
        check_plain(model)
        self._model, self._tensors = model, named_tensors(model)
        self.vectors = {
            name: vector if isinstance(vector, AlignmentVector) else AlignmentVector.open(vector)
            for name, vector in given.items()
        }
        layouts = {name: vector.layout(model) for name, vector in self.vectors.items()}
        for vector in self.vectors.values():
            vector.check()
            vector.check_finite()
        self._layout = next(iter(layouts.values()))
        self._lock = threading.RLock()
        self._lambdas = dict.fromkeys(self.vectors, 0.0)
        # By the names in the checkpoint, which decide how a weight is rounded.
        self._base = {
            name: value.clone(memory_format=torch.contiguous_format)
            for group in self._layout.units
            for name, value in self._on_disk(group).items()
        }
        if not transfer:
            check_base(model, self._base, self.vectors.values())
        files = [file for vector in self.vectors.values() for file in vector.delta.files]
        self._mapped = {} if resident else {file: file_identity(file) for file in files}
        self._deltas = {n: self._open(n, layouts[n], resident) for n in self.vectors}
        self._present = {name: id(tensor) for name, tensor in self._tensors.items()}
        self._seen = {name: trace(self._tensors[name]) for name in self._layout.shapes}

    @property
    def lambdas(self) -> dict[str, float]:
        """Name → the present λ; NaN after a setting that could not be undone (see `set`)."""
        return dict(self._lambdas)

    def set(
        self, lambdas: Mapping[str, float | str] | None = None, /, **named: float | str
    ) -> None:
        """Set some knobs; the others stay where they are.

        A value is λ, or the name of a level, which stands for its calibrated λ. When it fails or
        is interrupted, the model is left as it was before. Should the way back be interrupted as
        well, every λ is NaN until `reset`, which needs neither memory nor files, gives the base.

        Raises:
            AVError: an unknown name, a λ that is not finite, a level without calibration, weights
                that would become infinite, or that somebody else has changed.
        """
        changes = {
            name: self._coefficient(name, value)
            for name, value in {**(lambdas or {}), **named}.items()
        }
        with self._lock:
            self._move_to({**self._lambdas, **changes})

    @contextlib.contextmanager
    def at(
        self, lambdas: Mapping[str, float | str] | None = None, /, **named: float | str
    ) -> Iterator["PreTrainedModel"]:
        """Set some knobs for the duration of a block, which gets the model; then set all as before."""
        with self._lock:
            before = self.lambdas
            try:
                self.set(lambdas, **named)
                yield self._model
            finally:
                try:
                    self._move_to(before)
                except KeyboardInterrupt:
                    # Meant for the program, not for the way back.
                    self._move_to(before)
                    raise

    @contextlib.contextmanager
    def rows(self, settings: Sequence[Mapping[str, float | str]]) -> Iterator["PreTrainedModel"]:
        """Give each row of a batch its own λ for the duration of a block, which gets the model.

            with knobs.rows([{"medical": -1}, {}, {"medical": 1, "legal": 0.5}]) as model:
                model.generate(**batch_of_three)

        A knob that a row does not name is at 0 there. In the block the weights are the base's, and
        linear layers add what low-rank vectors change: the same as one setting after the other, but for
        the rounding of sums (and, in a model of 16 bits, of the weights of a setting). Each row may come
        several times in a row, as `num_return_sequences` has it.

        Raises:
            AVError: as `set`; a knob other than 0 is a vector of whole tensors; within the block, a batch
                of another number of rows, or a model whose layers see no rows.
        """
        rows = [
            {name: self._coefficient(name, value) for name, value in row.items()}
            for row in settings
        ]
        if not rows:
            raise AVError("rows needs a setting of each row of the batch")
        turned = [name for name in self.vectors if any(row.get(name) for row in rows)]
        layers = self._layers(turned)
        with self.at(dict.fromkeys(self.vectors, 0.0)) as model, added_per_row(layers, rows):
            yield model

    def reset(self) -> None:
        """Every λ to 0: the base, bit for bit."""
        with self._lock:
            self._move_to(dict.fromkeys(self.vectors, 0.0))

    def detach(self) -> "PreTrainedModel":
        """Give the model back as it came, and free the copies; the knobs are of no use any more."""
        with self._lock:
            self.reset()
            model, self._model = self._model, None
            self._tensors, self._base, self._deltas, self._seen = {}, {}, {}, {}
        return model

    def __repr__(self) -> str:
        return "Knobs(" + ", ".join(f"{n}={value:g}" for n, value in self._lambdas.items()) + ")"

    def _coefficient(self, name: str, value: float | str) -> float:
        if name not in self.vectors:
            raise AVError(f"no knob {name!r}: there are {', '.join(self.vectors)}")
        if isinstance(value, str):
            return self.vectors[name].metadata.calibrated(value)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise AVError(f"{name}: λ must be a finite number or a level's name, not {value!r}")
        return number

    def _layers(self, vectors: Iterable[str]) -> dict[torch.nn.Module, dict[str, Factors]]:
        """Return layer → vector → factors, of some vectors that have nothing but factors."""
        layers: dict[torch.nn.Module, dict[str, Factors]] = {}
        for vector in vectors:
            for name, delta in self._deltas[vector].items():
                if not isinstance(delta, Factors):
                    raise AVError(
                        f"{vector} has whole tensors, {name} among them: a λ for each row takes low-rank "
                        "vectors, see `av-extract --rank`"
                    )
                target = self._layout.by_disk[name].target
                layer = self._model.get_submodule(target.rpartition(".")[0])
                layers.setdefault(layer, {})[vector] = delta
        return layers

    def _on_disk(self, group: Group) -> dict[str, torch.Tensor]:
        """Return the model's present weights under their names in the checkpoint."""
        weights = {name: self._tensors[name].detach() for name in group.memory}
        return self._layout.to_disk(group, weights)

    def _open(
        self, vector: str, layout: Layout, resident: bool
    ) -> dict[str, torch.Tensor | Factors]:
        """Return the vector's tensors that move a weight, in memory or as mapped files, and factors
        as they are; by the names that the first vector has for them."""
        stored, deltas = self.vectors[vector].delta, {}
        for name, base in self._base.items():
            own = layout.by_place.get(self._layout.places[name])
            if own is None:
                folder = self.vectors[vector].folder
                raise AVError(
                    f"{folder} has no tensor for {name}: its base is laid out in another way than that "
                    f"of {next(iter(self.vectors.values())).folder}; make knobs of each alone"
                )
            if (factors := stored.factors(own)) is not None:
                deltas[name] = factors.to(base.device)
                continue
            delta = stored.dense(own)
            if moves(delta, base):
                deltas[name] = as_merged(delta, base, copy=True) if resident else delta
        stored.release()
        return deltas

    def _move_to(self, target: dict[str, float]) -> None:
        self._check_present(target)
        before, seen, written = self._lambdas, dict(self._seen), []
        changed = [name for name, value in target.items() if value != before[name]]
        try:
            for group in self._layout.units:
                if any(name in self._deltas[vector] for vector in changed for name in group.disk):
                    terms = self._terms(group, target)
                    written.append(group)
                    self._write(group, terms)
            self._lambdas = target
        except BaseException:
            # Until the way back is done, no setting counts as reached.
            self._lambdas = dict.fromkeys(self.vectors, math.nan)
            if not _is_unknown(before):
                self._undo(written, seen, before)
                self._lambdas = before
            raise

    def _undo(self, written: list[Group], seen: dict[str, tuple], before: dict[str, float]) -> None:
        for group in written:
            # Short of memory, what was not yet written to is better left alone.
            if any(self._is_written(name, seen) for name in group.memory):
                self._write(group, self._terms(group, before))

    def _is_written(self, name: str, seen: dict[str, tuple]) -> bool:
        tensor, name = self._tensors[name], self._layout.ties.get(name, name)
        return tensor.is_inference() or trace(tensor) != seen[name]

    def _check_present(self, target: dict[str, float]) -> None:
        """Raise AVError where a setting cannot start out from what is there."""
        if self._model is None:
            raise AVError("these knobs were detached from their model: make new ones")
        if _is_unknown(target):
            raise AVError("an interrupted setting could not be undone: call reset()")
        present = {
            name: id(tensor)
            for tensors in (self._model.named_parameters, self._model.named_buffers)
            for name, tensor in tensors(remove_duplicate=False)
        }
        lost = any(map(math.isnan, self._lambdas.values()))
        for name, tensor in self._tensors.items():
            # By each of its names: a head that was tied may have got weights of its own.
            same = present.get(name) == self._present[name]
            if not same or (not lost and self._is_changed(name, tensor)):
                raise AVError(
                    f"{name} was trained, loaded, moved, replaced or otherwise changed since these "
                    "knobs last set it: load the base again and make new knobs"
                )
        for file, identity in self._mapped.items():
            now = file_identity(file)
            # A file that is deleted or replaced stays readable for as long as it is mapped.
            same_file = now and identity and now[0] == identity[0]
            if any(target.values()) and same_file and now != identity:
                raise AVError(f"{file} was changed since these knobs were made: make new ones")

    def _is_changed(self, name: str, tensor: torch.Tensor) -> bool:
        return name in self._seen and trace(tensor) != self._seen[name]

    def _terms(
        self, group: Group, lambdas: Mapping[str, float]
    ) -> dict[str, list[tuple[float, torch.Tensor]]]:
        """Return what is added to each tensor of a group, by its name in the checkpoint."""
        return {
            name: [
                (value, as_merged(_dense(self._deltas[vector][name]), self._base[name]))
                for vector, value in lambdas.items()
                if value != 0 and name in self._deltas[vector]
            ]
            for name in group.disk
        }

    @torch.inference_mode()  # the only mode that may write to a model loaded in it
    def _write(self, group: Group, terms: dict[str, list[tuple[float, torch.Tensor]]]) -> None:
        """Compute the weights of one group in place."""
        add = partial(add_vectors, rounding=self.rounding, seed=self.seed)
        target = self._tensors[group.target]
        if group.converter is None and target.is_contiguous():
            [name] = group.disk
            add(self._base[name], terms[name], name=name, out=target)
        else:
            sums = {name: add(self._base[name], terms[name], name=name) for name in group.disk}
            for name, value in self._layout.to_memory(group, sums).items():
                self._tensors[name].copy_(value)
        for name in group.memory:
            self._seen[self._layout.ties.get(name, name)] = trace(self._tensors[name])


def _dense(delta: torch.Tensor | Factors) -> torch.Tensor:
    return delta.dense() if isinstance(delta, Factors) else delta


def _is_unknown(lambdas: Mapping[str, float]) -> bool:
    return any(map(math.isnan, lambdas.values()))
