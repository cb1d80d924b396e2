"""Mergekit recipes of settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from mergekit_av.merge.recipe import METHOD


@dataclass(frozen=True)
class Ingredients:
    """The parts that the recipes of a search have in common.

    Attributes:
        base: folder or Hub id.
        vectors: name → folder or Hub id.
        dtype: of the weights to write.
        rounding, seed: with which the settings were measured.
        transfer: whether the base is meant to be another than the vectors' own.
    """

    base: str
    vectors: dict[str, str]
    dtype: str
    rounding: str = "stochastic"
    seed: int = 0
    transfer: bool = False


def recipe(
    ingredients: Ingredients, lambdas: Mapping[str, float], comments: Sequence[str] = ()
) -> str:
    """Return YAML for mergekit-yaml. Where the settings were measured in `dtype`, it writes the very
    weights that were measured.

    Args:
        comments: lines to put before it.
    """
    shared = {
        name: value
        for name, value, usual in (
            ("rounding", ingredients.rounding, "stochastic"),
            ("seed", ingredients.seed, 0),
        )
        if value != usual
    }
    parameters = {"transfer": True} if ingredients.transfer else {}
    content = {
        "merge_method": METHOD,
        "base_model": _reference(ingredients.base),
        "dtype": ingredients.dtype,
        **({"parameters": shared} if shared else {}),
        "models": [
            {
                "model": _reference(source),
                "parameters": {"lambda": float(lambdas[name]), **parameters},
            }
            for name, source in ingredients.vectors.items()
        ],
    }
    lines = [f"# {line}".rstrip() for text in comments for line in text.splitlines()]
    return "\n".join(
        [
            *lines,
            yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None),
        ]
    )


def _reference(source: str) -> str:
    """Return a source as a recipe must name it: mergekit takes a bare `avs/medical` for a Hub id as well."""
    path = Path(source).expanduser()
    if path.is_absolute() or not path.is_dir():
        return str(path) if path.is_dir() else source
    text = path.as_posix()
    return text if text.startswith(("./", "../")) else f"./{text}"
