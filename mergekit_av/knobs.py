"""λ on a live model: base + Σ λᵢ θ_AVᵢ in place, set as often as one likes."""

import contextlib
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from .arithmetic import Rounding, add_vectors, check_rounding
from .checkpoint import Checkpoint, Digest, blocks_of, combined_fingerprint, fingerprint
from .errors import AVError
from .models import resolve
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
    `dtype`. Weights that no changed λ moves are not touched. The model stays a plain transformers
    model: nothing is wrapped or hooked.

    Memory: a copy of the base, beside the model. With `resident` each vector takes what its file
    takes (in a model of a narrower dtype, as much as the model), on the device of the weights it
    goes to. Without, vectors stay mapped files on disk: no memory but what the system lends to
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
        self._model, self._parameters = model, _plain_parameters(model)
        self.vectors = {
            name: vector if isinstance(vector, AlignmentVector) else AlignmentVector.open(vector)
            for name, vector in given.items()
        }
        for vector in self.vectors.values():
            vector.check_model(model)
            vector.check()
            vector.check_finite()
        if not transfer:
            _check_base(model, self._parameters, self.vectors.values())
        self._lock = threading.RLock()
        self._lambdas = dict.fromkeys(self.vectors, 0.0)
        self._base = {
            name: parameter.detach().clone(memory_format=torch.contiguous_format)
            for name, parameter in self._parameters.items()
        }
        files = [file for vector in self.vectors.values() for file in vector.checkpoint.files]
        self._mapped = {} if resident else {file: _identity(file) for file in files}
        self._deltas = {n: self._open(vector, resident) for n, vector in self.vectors.items()}
        self._seen = {name: _trace(parameter) for name, parameter in self._parameters.items()}

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
        """`set` for the duration of a block, which gets the model; afterwards all as before."""
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

    def reset(self) -> None:
        """Every λ to 0: the base, bit for bit."""
        with self._lock:
            self._move_to(dict.fromkeys(self.vectors, 0.0))

    def detach(self) -> "PreTrainedModel":
        """Give the model back as it came, and free the copies; the knobs are of no use any more."""
        with self._lock:
            self.reset()
            model, self._model = self._model, None
            self._parameters, self._base, self._deltas, self._seen = {}, {}, {}, {}
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

    def _open(self, vector: AlignmentVector, resident: bool) -> dict[str, torch.Tensor]:
        """The vector's tensors that move a weight, in memory or as mapped files."""
        deltas = {}
        for name, delta in vector.checkpoint.mapped().items():
            base = self._base.get(name)
            if base is not None and _moves(delta, base):
                deltas[name] = _as_merged(delta, base, copy=True) if resident else delta
        return deltas

    def _move_to(self, target: dict[str, float]) -> None:
        self._check_present(target)
        before, seen, written = self._lambdas, dict(self._seen), []
        changed = [name for name, value in target.items() if value != before[name]]
        try:
            for name in self._parameters:
                if any(name in self._deltas[vector] for vector in changed):
                    terms = self._terms(name, target)
                    written.append(name)
                    self._write(name, terms)
            self._lambdas = target
        except BaseException:
            # Until the way back is done, no setting counts as reached.
            self._lambdas = dict.fromkeys(self.vectors, math.nan)
            if not _is_unknown(before):
                self._undo(written, seen, before)
                self._lambdas = before
            raise

    def _undo(self, written: list[str], seen: dict[str, tuple], before: dict[str, float]) -> None:
        for name in written:
            parameter = self._parameters[name]
            # Short of memory, what was not yet written to is better left alone.
            if parameter.is_inference() or _trace(parameter) != seen[name]:
                self._write(name, self._terms(name, before))

    def _check_present(self, target: dict[str, float]) -> None:
        """Raise AVError where a setting cannot start out from what is there."""
        if self._model is None:
            raise AVError("these knobs were detached from their model: make new ones")
        if _is_unknown(target):
            raise AVError("an interrupted setting could not be undone: call reset()")
        present = {id(parameter) for parameter in self._model.parameters()}
        lost = any(map(math.isnan, self._lambdas.values()))
        for name, parameter in self._parameters.items():
            if id(parameter) not in present or (_trace(parameter) != self._seen[name] and not lost):
                raise AVError(
                    f"{name} was trained, loaded, moved, replaced or otherwise changed since these "
                    "knobs last set it: load the base again and make new knobs"
                )
        for file, identity in self._mapped.items():
            now = _identity(file)
            # A file that is deleted or replaced stays readable for as long as it is mapped.
            if any(target.values()) and now and now[0] == identity[0] and now != identity:
                raise AVError(f"{file} was changed since these knobs were made: make new ones")

    def _terms(self, name: str, lambdas: Mapping[str, float]) -> list[tuple[float, torch.Tensor]]:
        return [
            (value, _as_merged(self._deltas[vector][name], self._base[name]))
            for vector, value in lambdas.items()
            if value != 0 and name in self._deltas[vector]
        ]

    @torch.inference_mode()  # the only mode that may write to a model loaded in it
    def _write(self, name: str, terms: list[tuple[float, torch.Tensor]]) -> None:
        """Compute one parameter in place."""
        base, parameter = self._base[name], self._parameters[name]
        options = {"name": name, "rounding": self.rounding, "seed": self.seed}
        if parameter.is_contiguous():
            add_vectors(base, terms, out=parameter, **options)
        else:
            parameter.copy_(add_vectors(base, terms, **options))
        self._seen[name] = _trace(parameter)


def _is_unknown(lambdas: Mapping[str, float]) -> bool:
    return any(map(math.isnan, lambdas.values()))


def _as_merged(delta: torch.Tensor, base: torch.Tensor, copy: bool = False) -> torch.Tensor:
    """On the base's device and, where that is narrower, in its dtype: as mergekit casts its inputs.

    A wider dtype would change no value, and takes more memory.
    """
    fits = torch.promote_types(delta.dtype, base.dtype) == base.dtype
    return delta.to(base.device, delta.dtype if fits else base.dtype, copy=copy)


def _moves(delta: torch.Tensor, base: torch.Tensor) -> bool:
    """Whether base + λ·delta has other bits than the base; adding 0 to −0 gives 0."""
    return bool(delta.any()) or bool((base.signbit() & (base == 0)).any())


def _trace(parameter: torch.Tensor) -> tuple[int, int]:
    """Another one whenever a parameter is written to or gets other memory, as far as torch counts."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


def _identity(file: os.PathLike) -> tuple[int, ...] | None:
    try:
        stat = os.stat(file)
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _plain_parameters(model: "PreTrainedModel") -> dict[str, torch.nn.Parameter]:
    """The model's parameters by their names in a checkpoint, tied ones once.

    Raises:
        AVError: something is no plain floating-point tensor in memory.
    """
    if not isinstance(model, torch.nn.Module):
        raise AVError(f"Knobs needs a model in memory, not {model!r}: load it with transformers")
    if getattr(model, "is_quantized", False):
        raise AVError("the model is quantised: load it in float32, bfloat16 or float16")
    if getattr(model, "peft_config", None):
        raise AVError("the model carries PEFT adapters: make knobs of the model without them")
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise AVError(f"{name} is not in memory: load the model without offloading")
        dtype = parameter.dtype
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise AVError(f"{name} is {dtype}: load the model in float32, bfloat16 or float16")
        if type(parameter.data) is not torch.Tensor:
            kind = type(parameter.data).__name__
            raise AVError(f"{name} is a {kind}: load the model neither quantised nor sharded")
    return parameters


def _check_base(
    model: "PreTrainedModel",
    parameters: Mapping[str, torch.Tensor],
    vectors: Iterable[AlignmentVector],
) -> None:
    """Raise AVError unless the model holds the vectors' own base.

    Its values tell. Those of a model in a narrower dtype than the base's are compared with the
    checkpoint that it says it was loaded from.
    """
    state = model.state_dict()
    digests: dict[str, str] = {}
    source = None
    for vector in vectors:
        names = [name for name in vector.checkpoint if name in state]
        digests |= {name: _digest(state[name]) for name in names if name not in digests}
        found = combined_fingerprint(
            {name: tuple(state[name].shape) for name in names},
            {name: digests[name] for name in names},
        )
        base = vector.metadata.base
        if found != base.fingerprint:
            source = source or _fingerprint_of_source(model, parameters)
            found = source or found
        if found != base.fingerprint:
            raise AVError(
                f"{vector.folder} is a vector of {base.id} ({base.fingerprint[:8]}), and these are "
                f"not its weights ({found[:8]}): load that model; if the transfer is meant, pass "
                "transfer=True"
            )


def _digest(tensor: torch.Tensor) -> str:
    digest = Digest()
    for block in blocks_of(tensor):
        digest.update(block.cpu())
    return digest.hexdigest()


def _fingerprint_of_source(
    model: "PreTrainedModel", parameters: Mapping[str, torch.Tensor]
) -> str | None:
    """That of the checkpoint a model was loaded from, where it holds it, cast to its own dtypes."""
    if not model.name_or_path:
        return None
    try:
        folder = resolve(model.name_or_path, getattr(model.config, "_commit_hash", None))
        checkpoint = Checkpoint(folder)
    except AVError:
        return None
    same = all(
        name in checkpoint
        and checkpoint[name].shape == tuple(parameter.shape)
        and torch.equal(checkpoint.read(name).to(parameter.dtype), parameter.detach().cpu())
        for name, parameter in parameters.items()
    )
    return fingerprint(checkpoint) if same else None
