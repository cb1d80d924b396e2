"""Merging a base and three alignment vectors against mergekit's own `task_arithmetic`.

Both are real `mergekit-yaml` processes on bfloat16 inputs of the same sizes: `alignment_vector` over
the base and three vectors, `task_arithmetic` over the base and the three aligned models. Time and
memory are those of the whole process, imports included.
"""

import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

import click
import yaml
from measure import MEGABYTE, Run, interleaved, machine, ratios, run_command, spread, verdict

COEFFICIENTS = {"legal": 0.6, "financial": 0.3, "medical": -0.4}
THEIRS = "task_arithmetic"
TARGET = 1.0


@click.command(context_settings={"show_default": True})
@click.option("--repeat", type=click.IntRange(min=1), default=5, help="Measured runs of each side.")
@click.option("--base", help="Base model: a folder or Hub id.  [default: the default base]")
def main(repeat, base):
    """Time and peak memory of a merge with `alignment_vector`, against `task_arithmetic`."""
    with tempfile.TemporaryDirectory() as scratch:
        recipes = write_recipes(fabricate(base, Path(scratch)), Path(scratch))
        sides = {
            name: lambda recipe=recipe: merge(recipe, Path(scratch) / "merged")
            for name, recipe in recipes.items()
        }
        runs = interleaved(sides, repeat)

    click.echo(machine())
    click.echo(
        f"base {base or 'SmolLM2-135M-Instruct (default base)'} and 3 vectors, {repeat} rounds"
    )
    theirs = runs.pop(THEIRS)
    click.echo(f"{THEIRS}: {describe(theirs)}")
    for name, ours in runs.items():
        time = ratios([run.seconds for run in ours], [run.seconds for run in theirs])
        memory = ratios([run.peak for run in ours], [run.peak for run in theirs])
        click.echo(f"{name}: {describe(ours)}")
        click.echo(f"  time ratio   {spread(time)}, {verdict(time, TARGET)}")
        click.echo(f"  memory ratio {spread(memory)}, {verdict(memory, TARGET)}")


def fabricate(base: str | None, scratch: Path) -> Path:
    """Three aligned models near the base, float32, as vectors and rounded to bfloat16.

    Returns:
        The base's folder.
    """
    import torch
    from safetensors.torch import save_file

    from mergekit_av.hub.source import resolve
    from mergekit_av.io.checkpoint import SINGLE, Checkpoint
    from mergekit_av.models.default_base import base_or_default
    from mergekit_av.vectors.extraction import extract

    folder = resolve(base_or_default(base)).absolute()
    checkpoint = Checkpoint(folder)
    generator = torch.Generator().manual_seed(0)
    for name in COEFFICIENTS:
        model = scratch / "models" / name
        model.mkdir(parents=True)
        shutil.copy(folder / "config.json", model)
        aligned = {}
        for tensor in checkpoint:
            value = checkpoint.read(tensor).float()
            # About what a short training changes: a thousandth of the weights' own size.
            step = 1e-3 * value.abs().mean()
            aligned[tensor] = value + step * torch.randn(value.shape, generator=generator)
        save_file(aligned, model / SINGLE, metadata={"format": "pt"})
        extract(folder, model, scratch / "vectors" / name)
        rounded = {tensor: value.to(torch.bfloat16) for tensor, value in aligned.items()}
        save_file(rounded, model / SINGLE, metadata={"format": "pt"})
    return folder


def write_recipes(base: Path, scratch: Path) -> dict[str, Path]:
    def recipe(method: str, folder: str, word: str, **parameters) -> dict:
        models = [
            {"model": str(scratch / folder / name), "parameters": {word: value}}
            for name, value in COEFFICIENTS.items()
        ]
        return {
            "merge_method": method,
            "base_model": str(base),
            "models": models,
            "parameters": parameters,
            "dtype": "bfloat16",
        }

    recipes = {
        THEIRS: recipe(THEIRS, "models", "weight"),
        "alignment_vector": recipe("alignment_vector", "vectors", "lambda"),
        "alignment_vector, rounding: nearest": recipe(
            "alignment_vector", "vectors", "lambda", rounding="nearest"
        ),
    }
    files = {}
    for number, (name, content) in enumerate(recipes.items()):
        files[name] = scratch / f"{number}.yml"
        files[name].write_text(yaml.safe_dump(content), "utf-8")
    return files


def merge(recipe: Path, out: Path) -> Run:
    command = [str(Path(sysconfig.get_path("scripts")) / "mergekit-yaml"), str(recipe), str(out)]
    # Offline: mergekit's model card must not spend the run's time on asking the Hub.
    run = run_command(command, {**os.environ, "HF_HUB_OFFLINE": "1"})
    shutil.rmtree(out)
    return run


def describe(runs: list[Run]) -> str:
    seconds = spread([run.seconds for run in runs])
    megabytes = spread([run.peak / MEGABYTE for run in runs], digits=0)
    return f"{seconds} s, peak {megabytes} MB"


if __name__ == "__main__":
    main()
