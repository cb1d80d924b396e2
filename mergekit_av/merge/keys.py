"""Keys of a recipe that mergekit does not know, and drops in silence.

mergekit reads a recipe with pydantic, which ignores what it does not know: `rounding: nearest`
beside `merge_method:` or `weigth: 0.5` beside `model:` would merge something not meant. Which keys
are known is asked of mergekit's own models.
"""

import difflib
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from mergekit.config import MergeConfiguration
from pydantic import BaseModel

from mergekit_av.errors import AVError

from .recipe import METHOD, PER_RECIPE, PER_VECTOR


def check_keys(raw: Any) -> None:
    """Check a recipe as it was written, before mergekit reads it; other methods' are left alone.

    Raises:
        AVError: a key that mergekit does not know, or one without the value that it must have.
    """
    if isinstance(raw, Mapping) and raw.get("merge_method") == METHOD:
        # mergekit-multi names its recipes; such a name does no harm in mergekit-yaml.
        named = {key: value for key, value in raw.items() if key != "name"}
        _check(named, [MergeConfiguration], "the recipe")


def _check(raw: Any, types: list[Any], owner: str, place: str = "") -> None:
    """Compare a part of a recipe with the types that mergekit reads it as."""
    if raw is None and types and {NoneType, Any}.isdisjoint(types):
        raise AVError(f"{owner}: `{place}` is empty: give it a value")
    if isinstance(raw, list):
        items = [kind for part in types if get_origin(part) is list for kind in get_args(part)]
        for number, item in enumerate(raw):
            _check(item, list(_alternatives(*items)), owner, f"{place}[{number}]")
    elif isinstance(raw, Mapping):
        fields = _fields(types)
        values = [get_args(part)[1] for part in types if get_origin(part) is dict]
        if "parameters" in fields and isinstance(raw.get("model"), str):
            owner, place = raw["model"], ""
        for key, value in raw.items():
            if fields and key not in fields:
                raise AVError(_unknown(key, fields, owner, place))
            kinds = _alternatives(*([fields[key]] if fields else values))
            _check(value, list(kinds), owner, f"{place}.{key}" if place else str(key))


def _fields(types: list[Any]) -> dict[str, Any]:
    """Key → type, of all pydantic models among the types."""
    return {
        key: field.annotation
        for model in types
        if isinstance(model, type) and issubclass(model, BaseModel)
        for name, field in model.model_fields.items()
        for key in (name, field.alias, field.validation_alias)
        if isinstance(key, str)
    }


def _alternatives(*types: Any) -> Iterator[Any]:
    """Yield the types with each union taken apart."""
    for part in types:
        if get_origin(part) in (Union, UnionType):
            yield from _alternatives(*get_args(part))
        else:
            yield part


def _unknown(key: Any, fields: Mapping[str, Any], owner: str, place: str) -> str:
    """Return what is wrong with a key, and where it belongs or what may have been meant."""
    subject = f"`{key}` in `{place}`" if place else f"`{key}`"
    meant = {field: field for field in fields}
    if "parameters" in fields:
        if key in PER_RECIPE:
            return f"{owner}: {subject} belongs in the `parameters:` of the whole recipe"
        if key in PER_VECTOR:
            return f"{owner}: {subject} belongs in its `parameters:`"
        meant |= {name: f"parameters: {{{name}: …}}" for name in (*PER_VECTOR, *PER_RECIPE)}
    close = difflib.get_close_matches(str(key), meant, n=1)
    hint = f"did you mean `{meant[close[0]]}`?" if close else f"known are {', '.join(fields)}"
    return f"{owner}: unknown key {subject}; {hint}"
