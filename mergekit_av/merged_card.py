"""The model card of a checkpoint that mergekit made with alignment vectors.

mergekit writes the recipe (mergekit_config.yml) and a card beside the weights. This card has what
that one lacks: the λ of each vector, a recipe without the folders of the author's machine, and what
the Hub indexes.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from .card import PAPER, PROJECT
from .card_parts import Kept, assemble, fenced, table, text
from .models import hub_name
from .recipe import COEFFICIENTS, METHOD

RECIPE = "mergekit_config.yml"


@dataclass(frozen=True)
class Recipe:
    """A merge with alignment vectors: what mergekit was told, as YAML and as what that says."""

    written: str
    content: dict[str, Any]

    @property
    def base(self) -> str:
        """What the base is called; "its base" where it is called nothing."""
        return str(self.content.get("base_model") or "its base")

    def entries(self) -> Iterator[Mapping[str, Any]]:
        """Every `{model: …}`, wherever it stands."""
        return _entries(self.content)

    def models(self) -> list[str]:
        """All that is merged, the base first."""
        return list(dict.fromkeys([self.base, *(entry["model"] for entry in self.entries())]))


def read_recipe(folder: Path) -> Recipe | None:
    """The recipe in a checkpoint's folder; None where alignment vectors had no part in it.

    Folders are called by their last name: what else is in their paths is nobody's business.
    """
    try:
        recipe = _parse((folder / RECIPE).read_text("utf-8"))
        written = recipe.written
        for path in sorted(recipe.models(), key=len, reverse=True):
            if os.path.isabs(os.path.expanduser(path)):
                written = written.replace(path, f"./{Path(path).name}")
        return _parse(written)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None


def merged_card(recipe: Recipe, *, repo: str, kept: Kept) -> str:
    """Markdown with the front matter that the Hub indexes.

    Args:
        repo: the checkpoint's Hub id.
        kept: of an older card.
    """
    on_hub = [name for model in recipe.models() if (name := hub_name(model.partition("@")[0]))]
    front = ModelCardData(
        base_model=on_hub or None,
        base_model_relation="merge" if on_hub else None,
        library_name="transformers",
        tags=["mergekit", "merge", "alignment-vector"],
        **kept.license,
    )
    parts = [
        f"# {text(repo.rpartition('/')[2])}",
        f"{text(recipe.base)} with its alignment set by alignment vectors "
        f"([Inference time LLM alignment]({PAPER})): θ = θ_base + Σ λ·θ_AV, merged with "
        f"[mergekit](https://github.com/arcee-ai/mergekit) and {PROJECT}.",
        "## The vectors\n\n" + table(("vector", "λ"), list(_lambdas(recipe))),
        "## The recipe\n\n" + fenced(recipe.written, "yaml"),
        f"`pip install {PROJECT}` and `mergekit-yaml recipe.yml out/` give the same bytes again, as "
        f"long as what it names has not changed. Sums are in float32 and rounded once, {_rounding(recipe)}.",
        "## Intended use and limits\n\nAs of its base; not for advice to anybody. A vector acts beyond "
        "its own dimension too, and far from λ = 0 answers loop or break: what each was measured to "
        "do stands on its own card.",
    ]
    return assemble(front, parts, kept)


def _parse(written: str) -> Recipe:
    """Raises ValueError for what is no recipe with alignment vectors."""
    content = yaml.safe_load(written)
    if not isinstance(content, dict) or content.get("merge_method") != METHOD:
        raise ValueError(RECIPE)
    return Recipe(written, content)


def _rounding(recipe: Recipe) -> str:
    parameters = recipe.content.get("parameters") or {}
    rounding = parameters.get("rounding", "stochastic")
    if rounding == "nearest":
        return "to nearest"
    return f"stochastically, seed {text(parameters.get('seed', 0))}"


def _lambdas(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for entry in recipe.entries():
        if entry["model"] == recipe.base:
            continue
        scopes = [entry.get("parameters"), recipe.content.get("parameters")]
        found = [s[word] for s in scopes if s for word in COEFFICIENTS if word in s]
        value = found[0] if found else "see the recipe"
        yield entry["model"], value if isinstance(value, str) else json.dumps(value)


def _entries(content: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(content, dict):
        if isinstance(content.get("model"), str):
            yield content
        for value in content.values():
            yield from _entries(value)
    elif isinstance(content, list):
        for value in content:
            yield from _entries(value)
