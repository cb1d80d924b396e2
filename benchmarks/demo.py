"""`make demo`: the main job end to end, by the commands a user would type.

Trains a small alignment vector of the default base, merges it at several λ with plain
mergekit-yaml, evaluates every merge on test records and draws the result.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import click
import yaml

from mergekit_av.data.domain import load_domain
from mergekit_av.errors import AVError
from mergekit_av.evaluation.rendering import with_interval
from mergekit_av.evaluation.sweep.plot import plot_levels, read_domain
from mergekit_av.io.atomic import write_whole
from mergekit_av.models.default_base import fetch_default_base
from mergekit_av.stats import Estimate
from mergekit_av.text.tables import aligned

DOMAIN = "medical"
LAMBDAS = (-1.0, -0.5, 0.0, 0.5, 1.0)
FOLDER = Path("demo")
RECORDS = 36  # of 54: few enough that it is done in minutes
# Sampled, as such a model is used: greedy answers of 135 million parameters repeat themselves.
SAMPLING = "do_sample=true,temperature=0.7,top_p=0.9"


@click.command("demo")
@click.option("--lambda", "lambdas", multiple=True, type=float, default=LAMBDAS, show_default=True)
def demo(lambdas):
    """Train, merge at each λ, evaluate, plot; everything is written to ./demo."""
    started = time.monotonic()
    base = fetch_default_base()
    vector = FOLDER / DOMAIN
    options = ["--max-records", RECORDS, "--out", vector, "--overwrite"]
    _run(
        f"1/3  Training the {DOMAIN} alignment vector",
        ["av-train", "--domain", DOMAIN, *options],
    )
    points, answers = {}, {}
    for number, value in enumerate(sorted(lambdas), 1):
        step = f"2/3  λ = {value:g} ({number} of {len(lambdas)})"
        points[value], answers[value] = _measure(step, base, vector, value)
    click.echo(f"3/3  Result after {(time.monotonic() - started) / 60:.0f} minutes\n")
    levels = list(load_domain(DOMAIN).levels)
    text = _table(points, levels) + "\n\n" + _answers(answers)
    click.echo(text)
    figure = FOLDER / f"{DOMAIN}.png"
    count = next(iter(points.values()))["records"]
    plot_levels(
        points, levels, f"{base.name}, {DOMAIN} alignment vector, {count} test records", figure
    )
    write_whole(FOLDER / "result.txt", text + "\n")
    click.echo(f"\nFigure: {figure}   Figures: {FOLDER}/*.json   Vector: {vector}")


def _measure(step: str, base: Path, vector: Path, value: float) -> tuple[dict, str]:
    """Merge at one λ with mergekit-yaml, evaluate the checkpoint; λ = 0 is the base itself."""
    model = base
    if value:
        recipe = {
            "merge_method": "alignment_vector",
            "base_model": f"./{base}",
            "dtype": "bfloat16",
            "models": [{"model": f"./{vector}", "parameters": {"lambda": value}}],
        }
        model = FOLDER / f"lambda{value:+g}"
        file = FOLDER / f"lambda{value:+g}.yml"
        write_whole(file, yaml.safe_dump(recipe, sort_keys=False))
        _run(f"{step}: merge", ["mergekit-yaml", file, model, "--quiet"])
    report = FOLDER / f"lambda{value:+g}.json"
    shown = ["--answers", "1", "--max-new-tokens", "80", "--gen-kwargs", SAMPLING]
    command = ["av-eval", model, "--domain", DOMAIN, *shown, "--json", report]
    _run(f"{step}: evaluate", command)
    answer = next(iter(json.loads(report.read_text("utf-8"))["answers"][DOMAIN].values()))
    return read_domain(report, DOMAIN), answer


def _run(title: str, command: list) -> None:
    """Run one command of the environment, as typed; its progress goes to the terminal."""
    words = [str(word) for word in command]
    click.secho(f"\n{title}\n$ {shlex.join(words)}", bold=True, err=True)
    program = Path(sys.executable).with_name(words[0])
    if subprocess.run([program, *words[1:]], stdout=sys.stderr).returncode:
        raise AVError(f"{words[0]} failed; its message is above")


def _table(points: dict[float, dict], levels: list[str]) -> str:
    """A line per λ: each level's accuracy with its interval, mean log-probability, margins."""
    best = levels[0]
    head = ["λ", *(f"{level}" for level in levels), "log-prob " + " / ".join(levels)]
    head += [f"{best} over {level}" for level in levels[1:]]
    rows = [head]
    for value, point in sorted(points.items()):
        shares = [point["accuracy"][level] for level in levels]
        means = [point["mean_log_prob"][level]["value"] for level in levels]
        rows.append(
            [
                f"{value:+g}",
                *(with_interval(Estimate(**share)) for share in shares),
                " / ".join(f"{mean:.2f}" for mean in means),
                *(f"{means[0] - mean:+.2f}" for mean in means[1:]),
            ]
        )
    return aligned(rows)


def _answers(answers: dict[float, str]) -> str:
    lines = [f"λ = {value:+g}: {' '.join(text.split())}" for value, text in sorted(answers.items())]
    head = "Answers to the first test record (sampled, cut at 80 tokens):"
    return "\n\n".join([head, *lines])


if __name__ == "__main__":
    demo()
