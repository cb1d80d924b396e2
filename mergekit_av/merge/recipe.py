"""What can be said about a recipe before any file of a model is opened.

mergekit ignores keys it does not know and falls back to defaults in silence; a recipe that says
`lamda: -1` must not merge. Everything here is checked when mergekit reads the recipe.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergekit_av.errors import AVError
from mergekit_av.vectors.arithmetic import check_rounding

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration, OutputSliceDefinition

METHOD = "alignment_vector"
# λ, and mergekit's own word for it.
COEFFICIENTS = ("lambda", "weight")
PER_VECTOR = (*COEFFICIENTS, "transfer")
PER_RECIPE = ("rounding", "seed")
# In which sums can be written.
DTYPES = ("float32", "bfloat16", "float16", "float64")


# A number as people write it; Python would take 1_0 and digits of other scripts as well.
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
# From here on a whole number may have been written otherwise: YAML makes 8 of 010, 16 of 0x10, 90 of
# 1:30. Which it was mergekit does not tell.
WHOLE = 8


def read_coefficient(value: Any) -> float | None:
    """One λ as the recipe gives it: a finite number, or a string that YAML left unread ("1e-1").

    Raises:
        AVError: anything else.
    """
    if value is None:
        return None
    if not isinstance(value, bool):
        try:
            written = isinstance(value, str)
            number = math.nan if written and not NUMBER.fullmatch(value.strip()) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise AVError(f"{METHOD}: λ must be a finite number such as -1 or 0.6, not {value!r}")


def check_recipe(config: "MergeConfiguration") -> None:
    """Raise AVError for a recipe of `alignment_vector` that would merge something not meant."""
    if config.merge_method != METHOD:
        return
    for key, name in (("dtype", config.dtype), ("out_dtype", config.out_dtype)):
        if name and name.removeprefix("torch.") not in DTYPES:
            raise AVError(f"`{key}` must be one of {', '.join(DTYPES)}, not {name!r}")
    for base, scopes, models in _merges(config):
        if base is None:
            raise AVError(f"{METHOD} needs `base_model:`, the model the vectors were trained on")
        vectors = [m for m in models if m.model != base]
        if not vectors:
            raise AVError(f"{METHOD} needs at least one alignment vector beside {base}")
        names = [str(m.model) for m in vectors]
        for name in names:
            if names.count(name) > 1:
                raise AVError(f"{name} stands twice in the recipe: give it once, with the sum of λ")
        for scope in scopes:
            _check_names("the recipe", scope, (*PER_VECTOR, *PER_RECIPE))
        for vector in vectors:
            _check_vector(str(vector.model), [vector.parameters or {}, *scopes])
            _check_layers(vector, models, base, [vector.parameters or {}, *scopes])
        _check_shared(scopes, config)


def _merges(config: "MergeConfiguration") -> Iterable[tuple[Any, list[Mapping], list]]:
    """Each list of inputs in a recipe: its base, the parameter scopes around it, innermost first."""
    base, top = config.base_model, config.parameters or {}
    if config.models:
        yield base, [top], config.models
    for piece in config.slices or ():
        yield _slice(piece, base, [top])
    for module in (config.modules or {}).values():
        outer = [module.parameters or {}, top]
        if module.models:
            yield base, outer, module.models
        for piece in module.slices or ():
            yield _slice(piece, base, outer)


def _slice(piece: "OutputSliceDefinition", base: Any, outer: list[Mapping]) -> tuple:
    base = piece.base_model or base
    if base is not None and base not in [source.model for source in piece.sources]:
        # Under `models:` mergekit adds it; here it would end in a traceback.
        raise AVError(
            f"a slice lacks its base: add `- model: {base}` with its layers to `sources:`"
        )
    return base, [piece.parameters or {}, *outer], piece.sources


def _check_vector(name: str, scopes: list[Mapping]) -> None:
    _check_names(name, scopes[0], PER_VECTOR)
    used = [word for word in COEFFICIENTS if any(word in scope for scope in scopes)]
    if len(used) > 1:
        raise AVError(f"{name} has both `lambda` and `weight`: they mean the same, keep one")
    if not used:
        raise AVError(
            f"{name} has no λ: write `parameters: {{lambda: 1.0}}` under it (there is no default)"
        )
    settings = [scope[used[0]] for scope in scopes if used[0] in scope]
    try:
        covered = [_covers_every_tensor(setting) for setting in settings]
    except AVError as error:
        raise AVError(f"{name}: {error.message}") from None
    if not any(covered):
        raise AVError(
            f"{name}: `{used[0]}` has filters but no value for the tensors that match none of "
            "them: end the list with `- value: 0`"
        )
    for scope in scopes:
        if not isinstance(scope.get("transfer", False), bool):
            raise AVError(f"{name}: `transfer` must be true or false")


def _check_layers(vector: Any, sources: list, base: Any, scopes: list[Mapping]) -> None:
    """In a slice, the difference of one layer must not be added to another layer in silence."""
    if _setting(scopes, "transfer", False):
        return
    for source in sources:
        # What stands under `models:` has all its layers, and no range.
        own, wanted = (getattr(part, "layer_range", None) for part in (vector, source))
        if source.model == base and own != wanted:
            raise AVError(
                f"{vector.model}: its layers {_range(own)} would be added to the layers {_range(wanted)} "
                f"of {base}: give both the same `layer_range`, or, if it is meant, add "
                "`transfer: true` to its parameters"
            )


def _range(layers: Sequence[int] | None) -> str:
    return "all" if layers is None else str(list(layers))


def _covers_every_tensor(setting: Any) -> bool:
    """Check each value in a parameter setting; say whether it gives one to every tensor."""
    entries = setting if isinstance(setting, list) else [setting]
    covered = False
    for entry in entries:
        value = getattr(entry, "value", entry)
        for number in value if isinstance(value, list) else [value]:
            read_coefficient(number)
            if isinstance(number, int) and abs(number) >= WHOLE:
                raise AVError(
                    f"λ = {number} may have been written as something else, of which YAML makes that "
                    f"(010 is 8, 1:30 is 90): write {number}.0 if it is meant"
                )
        empty = isinstance(value, list) and not value
        covered |= not empty and getattr(entry, "filter", None) in (None, "*")
    return covered


def _check_names(owner: str, parameters: Mapping, known: tuple[str, ...]) -> None:
    for key in parameters:
        if key in known:
            continue
        if key in PER_RECIPE:
            raise AVError(f"{owner}: `{key}` is for the whole recipe: move it to its `parameters:`")
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(known)}"
        raise AVError(f"{owner}: unknown parameter `{key}`; {hint}")


def _check_shared(scopes: list[Mapping], config: "MergeConfiguration") -> None:
    rounding = _setting(scopes, "rounding", "stochastic")
    check_rounding(rounding)
    seed = _setting(scopes, "seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise AVError(f"`seed` must be an integer, not {seed!r}")
    narrows = config.out_dtype not in (None, "float32", "float64", config.dtype)
    if rounding == "stochastic" and narrows:
        # mergekit casts to out_dtype after the method is done, to nearest.
        raise AVError(
            f"`out_dtype: {config.out_dtype}` would round to nearest what `rounding: stochastic` "
            f"keeps: write `dtype: {config.out_dtype}` instead, or `parameters: {{rounding: nearest}}`"
        )


def _setting(scopes: list[Mapping], name: str, default: Any) -> Any:
    """Return what holds of a parameter: the innermost scope that has it."""
    return next((scope[name] for scope in scopes if name in scope), default)
