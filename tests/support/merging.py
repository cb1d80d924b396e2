"""Merges as a user runs them: a recipe in a file, mergekit's own command."""

from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner, Result
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.torch import load_file


def make_recipe(base: Path, lambdas: dict[Path, Any], **top: Any) -> dict:
    """base + Σ λ·AV; `top` are further keys of the recipe."""
    models = [{"model": str(av), "parameters": {"lambda": value}} for av, value in lambdas.items()]
    return {"merge_method": "alignment_vector", "base_model": str(base), "models": models, **top}


def run(recipe: dict, out: Path, *options: str) -> Result:
    """Run mergekit-yaml in this process, on a recipe written next to `out`."""
    file = out.with_suffix(".yml")
    file.write_text(yaml.safe_dump(recipe), "utf-8")
    return CliRunner().invoke(mergekit_yaml, [str(file), str(out), *options])


def merge(recipe: dict, out: Path, *options: str) -> dict:
    """The tensors that mergekit-yaml writes for a recipe."""
    result = run(recipe, out, "--quiet", *options)
    assert result.exit_code == 0, result.output or result.exception
    return load_file(out / "model.safetensors")


def refusal(recipe: dict, out: Path) -> str:
    """The one line with which mergekit-yaml ends on a recipe that must not merge."""
    result = run(recipe, out)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert [line for line in lines if "Error" in line] == lines[-1:], result.output
    assert isinstance(result.exception, SystemExit), "not a ClickException: a traceback"
    assert not list(out.glob("*.safetensors"))
    return lines[-1].removeprefix("Error: ")
