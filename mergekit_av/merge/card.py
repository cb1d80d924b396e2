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

from mergekit_av.errors import AVError
from mergekit_av.hub.source import hub_name
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.io.yaml import refuse_unfolding
from mergekit_av.models.default_base import DEFAULT_BASE
from mergekit_av.text.card import Kept, assemble
from mergekit_av.text.markdown import fenced, table, text
from mergekit_av.vectors.card import PAPER, PROJECT, about_base, base_on_hub
from mergekit_av.vectors.metadata import BaseIdentity

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

    @property
    def folder(self) -> Path | None:
        """Where the base is, if it is here."""
        folder = Path(os.path.expanduser(self.base))
        return folder if folder.is_dir() else None

    def identity(self) -> BaseIdentity:
        """Of the base; its fingerprint where it may be the default base, and "" where not."""
        name, _, revision = (self.base, "", "") if self.folder else self.base.partition("@")
        found = ""
        if self.folder is not None and self.folder.resolve().name == DEFAULT_BASE.name:
            found = fingerprint(Checkpoint(self.folder))
        return BaseIdentity(name, found, revision or None)

    def entries(self) -> Iterator[Mapping[str, Any]]:
        """Every `{model: …}`, wherever it stands."""
        return _entries(self.content)

    def models(self) -> list[str]:
        """Return all that is merged, the base first."""
        return list(dict.fromkeys([self.base, *(entry["model"] for entry in self.entries())]))

    def published(self) -> "Recipe":
        """Return the same with folders by their last name: what else is in a path is nobody's
        business."""
        content = _without_paths(self.content)
        if content == self.content:
            return self
        written = yaml.safe_dump(
            content, sort_keys=False, allow_unicode=True, default_flow_style=None
        )
        return Recipe(written, content)


def read_recipe(folder: Path) -> Recipe | None:
    """Return the recipe in a checkpoint's folder; None where alignment vectors had no part in it."""
    try:
        return _parse((folder / RECIPE).read_text("utf-8"))
    except AVError:
        raise
    except Exception:  # PyYAML lets through what the constructors of its types raise
        return None


def merged_card(recipe: Recipe, base: BaseIdentity, *, repo: str, kept: Kept) -> str:
    """Markdown with the front matter that the Hub indexes.

    Args:
        recipe: as it is published.
        base: of the recipe as it was written.
        repo: the checkpoint's Hub id.
        kept: of an older card.

    Raises:
        AVError: the recipe says something that no merge can have been made with.
    """
    try:
        return _card(recipe, base, repo, kept)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise AVError(
            f"{RECIPE} is damaged ({type(error).__name__}: {error}): merge again, or remove it"
        ) from error


def _card(recipe: Recipe, base: BaseIdentity, repo: str, kept: Kept) -> str:
    vectors = [model for model in recipe.models() if model != recipe.base]
    names = [base_on_hub(base), *(hub_name(vector.partition("@")[0]) for vector in vectors)]
    on_hub = [name for name in names if name]
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
        *about_base(base),
        "## Intended use and limits\n\nAs of its base; not for advice to anybody. A vector acts beyond "
        "its own dimension too, and far from λ = 0 answers loop or break: what each was measured to "
        "do stands on its own card.",
    ]
    return assemble(front, parts, kept)


def _parse(written: str) -> Recipe:
    """Raises ValueError for what is no recipe with alignment vectors."""
    content = yaml.safe_load(written)
    refuse_unfolding(content, RECIPE)
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
        yield text(entry["model"]), text(value if isinstance(value, str) else json.dumps(value))


def _without_paths(content: Any) -> Any:
    """Absolute paths, wherever they stand, by their last name."""
    if isinstance(content, dict):
        return {key: _without_paths(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_paths(value) for value in content]
    if isinstance(content, str) and os.path.isabs(os.path.expanduser(content)):
        return f"./{Path(content).name}"
    return content


def _entries(content: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(content, dict):
        if isinstance(content.get("model"), str):
            yield content
        for value in content.values():
            yield from _entries(value)
    elif isinstance(content, list):
        for value in content:
            yield from _entries(value)
