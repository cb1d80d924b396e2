"""λ on a live model: base + Σ λᵢ θ_AVᵢ in place, set as often as one likes."""

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from .arithmetic import Rounding, add_vectors
from .checkpoint import Checkpoint, Digest, blocks_of, combined_fingerprint, fingerprint
from .errors import AVError
from .vector import AlignmentVector

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
    `dtype`. The model stays a plain transformers model: nothing is wrapped or hooked.

    Memory: a copy of the base, beside the model. With `resident` each vector takes as much again,
    on the device of the weights it goes to. Without, vectors stay on disk and are read again, a
    tensor at a time, whenever a λ changes: no memory to speak of, and a setting takes longer.

    `set`, `at` and `reset` of several threads wait for one another (`at` until its block ends). A
    generation that runs in another thread meanwhile is the caller's to keep apart: it would see
    weights change under it.

    Args:
        model: a causal LM on one or several devices, in float32, bfloat16 or float16. It must hold
            its base weights.
        vectors: name → vector, its folder or its Hub id, for names that are no Python identifiers.
        rounding, seed: as in a recipe.
        transfer: accept a model that the vectors were not made for.
        resident: keep the vectors in memory.
        named: name → vector, as keywords.

    Raises:
        AVError: a vector is damaged or of another base; the model is quantised, has weights that
            are not in memory, or is of another architecture.
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
        self.vectors = {
            name: vector if isinstance(vector, AlignmentVector) else AlignmentVector.open(vector)
            for name, vector in given.items()
        }
        self.rounding, self.seed = rounding, seed
        self._parameters = _matched(model, list(self.vectors.values()))
        for vector in self.vectors.values():
            vector.check()
            vector.check_finite()
        if not transfer:
            _check_base(model, self._parameters, list(self.vectors.values()))
        self._model = model
        self._lock = threading.RLock()
        self._lambdas = dict.fromkeys(self.vectors, 0.0)
        self._base = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._resident = (
            {name: self._read(vector) for name, vector in self.vectors.items()} if resident else {}
        )

    @property
    def lambdas(self) -> dict[str, float]:
        """Name → the present λ."""
        return dict(self._lambdas)

    def set(
        self, lambdas: Mapping[str, float | str] | None = None, /, **named: float | str
    ) -> None:
        """Set some knobs; the others stay where they are.

        A value is λ, or the name of a level, which stands for its calibrated λ. When it fails or
        is interrupted, the model is left as it was before.

        Raises:
            AVError: an unknown name, a λ that is not finite, a level without calibration, or
                weights that would become infinite.
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
        """`set` for the duration of a block, which gets the model; afterwards as before."""
        with self._lock:
            before = self.lambdas
            self.set(lambdas, **named)
            try:
                yield self._model
            finally:
                self._move_to(before)

    def reset(self) -> None:
        """Every λ to 0: the base, bit for bit."""
        with self._lock:
            self._move_to(dict.fromkeys(self.vectors, 0.0))

    def detach(self) -> "PreTrainedModel":
        """Give the model back as it came, and free the copies; the knobs are of no use any more."""
        with self._lock:
            self.reset()
            model = self._model
            self._parameters, self._base, self._resident = {}, {}, {}
            self._model = None
        return model

    def __repr__(self) -> str:
        return "Knobs(" + ", ".join(f"{n}={value:g}" for n, value in self._lambdas.items()) + ")"

    def _coefficient(self, name: str, value: float | str) -> float:
        if name not in self.vectors:
            raise AVError(f"no knob {name!r}: there are {', '.join(self.vectors)}")
        if isinstance(value, str):
            return self.vectors[name].metadata.calibrated(value)
        if isinstance(value, bool) or not math.isfinite(value):
            raise AVError(f"{name}: λ must be a finite number or a level's name, not {value!r}")
        return float(value)

    def _move_to(self, target: dict[str, float]) -> None:
        if self._model is None:
            raise AVError("these knobs were detached from their model: make new ones")
        if target == self._lambdas:
            return
        before, touched = self._lambdas, []
        # Should even the way back be interrupted, no setting counts as reached.
        self._lambdas = dict.fromkeys(self.vectors, math.nan)
        try:
            for name in self._parameters:
                touched.append(name)
                self._write(name, target)
        except BaseException:
            for name in touched:
                self._write(name, before)
            self._lambdas = before
            raise
        self._lambdas = target

    @torch.no_grad()
    def _write(self, name: str, lambdas: dict[str, float]) -> None:
        """Compute one parameter at a setting, in place."""
        base, parameter = self._base[name], self._parameters[name].data
        terms = [
            (value, self._delta(vector, name)) for vector, value in lambdas.items() if value != 0
        ]
        options = {"name": name, "rounding": self.rounding, "seed": self.seed}
        if parameter.is_contiguous():
            add_vectors(base, terms, out=parameter, **options)
        else:
            parameter.copy_(add_vectors(base, terms, **options))

    def _delta(self, vector: str, name: str) -> torch.Tensor:
        if self._resident:
            return self._resident[vector][name]
        return self._fitted(self.vectors[vector], name)

    def _read(self, vector: AlignmentVector) -> dict[str, torch.Tensor]:
        return {name: self._fitted(vector, name) for name in self._parameters}

    def _fitted(self, vector: AlignmentVector, name: str) -> torch.Tensor:
        # In the model's dtype, as mergekit casts whatever it loads to the recipe's.
        return vector.checkpoint.read(name).to(self._base[name])


def _matched(
    model: "PreTrainedModel", vectors: list[AlignmentVector]
) -> dict[str, torch.nn.Parameter]:
    """The model's parameters by their names in a checkpoint, tied ones once.

    Raises:
        AVError: a parameter is not a floating-point tensor in memory, or the vectors have other
            names or shapes.
    """
    if getattr(model, "is_quantized", False):
        raise AVError("the model is quantised: load it in float32, bfloat16 or float16")
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise AVError(f"{name} is not in memory: load the model without offloading")
        if parameter.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise AVError(
                f"{name} is {parameter.dtype}: load the model in float32, bfloat16 or float16"
            )
    # A checkpoint may hold tied weights by all their names, and buffers.
    known = set(model.state_dict())
    for vector in vectors:
        unknown = {
            name for name in vector.checkpoint if name not in known and not vector.is_zero(name)
        }
        if names := sorted(unknown | (set(parameters) - set(vector.checkpoint))):
            raise AVError(
                f"{vector.folder} is of another architecture than the model: {names[0]} is not in "
                "both"
            )
        for name, parameter in parameters.items():
            if (shape := vector.checkpoint[name].shape) != tuple(parameter.shape):
                raise AVError(
                    f"{vector.folder} does not fit the model: {name} is {shape} in the vector and "
                    f"{tuple(parameter.shape)} in the model"
                )
    return parameters


def _check_base(
    model: "PreTrainedModel",
    parameters: Mapping[str, torch.Tensor],
    vectors: list[AlignmentVector],
) -> None:
    """Raise AVError unless the model holds the vectors' own base.

    Its values tell; those of a model in a narrower dtype than the base's are compared with the
    checkpoint that it says it was loaded from.
    """
    found = _fingerprint(model, vectors[0])
    others = [vector for vector in vectors if vector.metadata.base.fingerprint != found]
    folder = getattr(model, "name_or_path", "")
    if others and os.path.isdir(folder):
        checkpoint = Checkpoint(folder)
        if _is_cast_of(parameters, checkpoint):
            found = fingerprint(checkpoint)
    for vector in others:
        if (base := vector.metadata.base).fingerprint != found:
            raise AVError(
                f"{vector.folder} is a vector of {base.id} ({base.fingerprint[:8]}), and these are "
                f"not its weights ({found[:8]}): load that model; if the transfer is meant, pass "
                "transfer=True"
            )


def _fingerprint(model: "PreTrainedModel", vector: AlignmentVector) -> str:
    """As `checkpoint.fingerprint`, of what the model has of the vector's tensors."""
    state = {n: t for n, t in model.state_dict().items() if n in vector.checkpoint}
    digests = {}
    for name, tensor in state.items():
        digest = Digest()
        for block in blocks_of(tensor):
            digest.update(block.cpu())
        digests[name] = digest.hexdigest()
    return combined_fingerprint({n: tuple(t.shape) for n, t in state.items()}, digests)


def _is_cast_of(parameters: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> bool:
    """Whether the parameters are the checkpoint's tensors, cast to their own dtype."""
    return all(
        name in checkpoint
        and checkpoint[name].shape == tuple(parameter.shape)
        and torch.equal(checkpoint.read(name).to(parameter.dtype), parameter.detach().cpu())
        for name, parameter in parameters.items()
    )
