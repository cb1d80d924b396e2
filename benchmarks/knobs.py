"""Setting a knob on a live model, against plain sums of the same tensors and against a new merge.

One of three vectors' λ is changed, with the other two at 0 and with all three active. The plain
sums go from the same base and vectors, all in memory, to tensors like the weights:
`torch.add(base, av, alpha=λ, out=weight)` and `add_` for every further vector, which rounds after
each; and `weight.copy_(base + λ1*av1 + …)`, as most scripts have it. The other way to a model at
another λ is to merge, once with the command `mergekit-yaml` and once with mergekit's `run_merge` in
this process, where all is imported and checked, and then `from_pretrained`.
"""

import ctypes
import gc
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from functools import cached_property, partial
from itertools import product
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # mergekit's model card must not spend time on asking the Hub

import click
import torch
import yaml
from measure import (
    MEGABYTE,
    Run,
    interleaved,
    machine,
    process_memory,
    ratios,
    run_command,
    spread,
    verdict,
)
from merge import COEFFICIENTS, fabricate, write_recipes

from mergekit_av import AlignmentVector, Knobs
from mergekit_av.vectors.delta import DenseDelta

SUM_TARGET = 1.5
MERGE_TARGET = 20
MOVED = "medical"
# Random Mistrals; transformers' own defaults are those of the 7B.
SHAPES = {"mistral-7b": {}, "tiny": {"hidden_size": 256, "intermediate_size": 512}}


@click.command(context_settings={"show_default": True})
@click.option("--repeat", type=click.IntRange(min=1), default=5, help="Measured runs of each side.")
@click.option("--base", help="Base model: a folder or Hub id.  [default: the default base]")
@click.option(
    "--shape",
    type=click.Choice(list(SHAPES)),
    help="Instead of the base, a random Mistral and vectors in memory; no merge is measured.",
)
@click.option("--device", default="cpu", help="Where the model is.")
def main(repeat, base, shape, device):
    """Time of a setting, resident and mapped, against plain sums and against merging anew."""
    click.echo(machine())
    with tempfile.TemporaryDirectory() as scratch:
        if shape:
            model = random_model(SHAPES[shape], device)
            vectors = {name: RandomVector(model, seed) for seed, name in enumerate(COEFFICIENTS)}
        else:
            folder = fabricate(base, Path(scratch))
            model = load(folder, device)
            vectors = {name: Path(scratch) / "vectors" / name for name in COEFFICIENTS}
        weights = sum(parameter.numel() for parameter in model.parameters())
        click.echo(
            f"{shape or base or 'SmolLM2-135M-Instruct (default base)'}, {weights / 1e6:.0f} M "
            f"weights in bfloat16, and 3 vectors; device {describe(device)}, {repeat} rounds"
        )
        for resident, rounding in product((True, False), ("stochastic", "nearest")):
            before = own_memory()
            options = {"rounding": rounding, "resident": resident, "transfer": bool(shape)}
            knobs = Knobs(model, vectors, **options)
            taken = (own_memory() - before) / MEGABYTE
            click.echo(
                f"{'resident' if resident else 'mapped'}, {rounding}"
                + (f" (knobs take {taken:.0f} MB beside the model)" if device == "cpu" else "")
            )
            for active in (1, 3):
                compare_sums(knobs, active, repeat, device)
            if not shape and rounding == "stochastic":
                recipe = write_recipes(folder, Path(scratch))["alignment_vector"]
                compare_merge(knobs, recipe, Path(scratch) / "merged", repeat, device)
            knobs.detach()


def compare_sums(knobs: Knobs, active: int, repeat: int, device: str) -> None:
    """`active` counts the vectors with λ ≠ 0, the one that moves among them."""
    others = [name for name in COEFFICIENTS if name != MOVED][: active - 1]
    knobs.reset()
    knobs.set({name: COEFFICIENTS[name] for name in others})
    # The very tensors that the knobs have; mapped ones are read once, for they are in memory here.
    base = knobs._base
    deltas = {
        name: {n: delta.to(device, copy=delta.device.type != device) for n, delta in deltas.items()}
        for name, deltas in knobs._deltas.items()
    }
    out = {name: torch.empty_like(value) for name, value in base.items()}
    values = {MOVED: COEFFICIENTS[MOVED], **{name: COEFFICIENTS[name] for name in others}}

    def plain():
        for name, weight in out.items():
            torch.add(base[name], deltas[MOVED][name], alpha=values[MOVED], out=weight)
            for other in others:
                weight.add_(deltas[other][name], alpha=values[other])

    def script():
        for name, weight in out.items():
            total = base[name]
            for vector, value in values.items():
                total = total + value * deltas[vector][name]
            weight.copy_(total)

    sides = {"set": partial(move, knobs), "plain": plain, "script": script}
    runs = interleaved({n: partial(timed, side, device) for n, side in sides.items()}, repeat)
    seconds = {name: [run.seconds for run in some] for name, some in runs.items()}
    against_plain = ratios(seconds["set"], seconds["plain"])
    against_script = ratios(seconds["set"], seconds["script"])
    click.echo(f"  {active} active: {spread([1e3 * s for s in seconds['set']], digits=1)} ms")
    click.echo(
        f"    against torch.add(…, out=weight): {spread(against_plain)}, "
        f"{verdict(against_plain, SUM_TARGET)}"
    )
    click.echo(f"    against weight.copy_(base + λ*av + …): {spread(against_script)}")


def compare_merge(knobs: Knobs, recipe: Path, out: Path, repeat: int, device: str) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text("utf-8")))
    knobs.set(COEFFICIENTS)

    command = [str(Path(sysconfig.get_path("scripts")) / "mergekit-yaml"), str(recipe), str(out)]
    options = MergeOptions(quiet=True)
    sides = {
        "set": partial(move, knobs),
        "mergekit-yaml": lambda: (run_command(command), load(out, device)),
        "run_merge": lambda: (run_merge(config, str(out), options), load(out, device)),
    }
    runs = interleaved({n: partial(timed, side, device) for n, side in sides.items()}, repeat)
    seconds = {name: [run.seconds for run in some] for name, some in runs.items()}
    ours = seconds.pop("set")
    for name, theirs in seconds.items():
        faster = ratios(theirs, ours)
        met = "met" if statistics.median(faster) >= MERGE_TARGET else "missed"
        click.echo(
            f"  {name} and from_pretrained: {spread(theirs)} s, {spread(faster, digits=0)} times as "
            f"long, target ≥ {MERGE_TARGET}: {met}"
        )


def move(knobs: Knobs) -> None:
    """Set one knob, to another λ than it has."""
    value = COEFFICIENTS[MOVED]
    knobs.set({MOVED: value if knobs.lambdas[MOVED] != value else -value})


def own_memory() -> int:
    """What the process has in memory beside mapped files, bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return process_memory(os.getpid())["RssAnon"]


def timed(action: Callable[[], None], device: str) -> Run:
    start = time.perf_counter()
    action()
    if device != "cpu":
        torch.accelerator.synchronize()
    return Run(time.perf_counter() - start)


def load(folder: Path, device: str):
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)


def random_model(shape: dict, device: str):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        return MistralForCausalLM(MistralConfig(**shape))


class RandomDelta(DenseDelta):
    """Tensors that are on no disk. Mapped, they cost what a file in the page cache does."""

    files = ()

    def __init__(self, model, seed: int):
        self._weights, self._seed = dict(model.named_parameters()), seed

    def names(self):
        return self._weights.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._weights[name].shape)

    @cached_property
    def _mapped(self) -> dict[str, torch.Tensor]:
        torch.manual_seed(self._seed)
        return {n: torch.randn_like(w).mul_(1e-5).cpu() for n, w in self._weights.items()}


class RandomVector(AlignmentVector):
    """A vector of random tensors."""

    def __init__(self, model, seed: int):
        self.delta = RandomDelta(model, seed)

    def check(self) -> None: ...
    def check_finite(self) -> None: ...


def describe(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
