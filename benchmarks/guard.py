"""What tells broken language from readable? Candidates for the guard against blind readings.

`readings.jsonl` holds a line a setting: a variant of variants.py (trained on a GPU, 54 records), its
λ, what could be measured there, and some of its answers, sampled at temperature 0.7 and top-p 0.9,
each with two readings. The readers, two runs of a large language model, saw question and answer in
random order, and neither variant nor λ. `language` is 0 for broken (fragments, loops, no sense to be
had), 1 for sentences with odd passages, 2 for ordinary English; `kind` is the level it reads as.

    python benchmarks/guard.py
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import click
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from mergekit_av.evaluation.fluency import Fluency

READINGS = Path(__file__).with_name("readings.jsonl")
# Of the readings of a setting's answers, how many must call it broken.
BROKEN = 3 / 8


@click.command()
@click.option("--every", is_flag=True, help="A line for each setting as well.")
def main(every):
    """Print a Markdown table of what is measured, and how well it agrees with the readers."""
    lines = [json.loads(line) for line in READINGS.read_text("utf-8").splitlines()]
    base = {line["domain"]: line for line in lines if line["variant"] == "base"}
    pairs = [(line, base[line["domain"]]) for line in lines if line["variant"] != "base"]
    marks = [answer["language"] for line in lines for answer in line["read"]]
    kappa = cohen_kappa_score(*zip(*marks, strict=True), weights="quadratic")
    click.echo(
        f"{len(marks)} answers, weighted κ of the two readings of their language: {kappa:.2f}"
    )
    broken = [_broken(line) >= BROKEN for line, _ in pairs]
    click.echo(f"{len(pairs)} settings, {sum(broken)} of them broken\n")
    click.echo("| what is measured | AUC | broken ones let through | readable ones kept out |")
    click.echo("| --- | --- | --- | --- |")
    for name, measure in MEASURES.items():
        used = [measure(line, ground) for line, ground in pairs]
        passed = sum(b and u <= 1 for b, u in zip(broken, used, strict=True))
        kept_out = sum(not b and u > 1 for b, u in zip(broken, used, strict=True))
        click.echo(f"| {name} | {roc_auc_score(broken, used):.2f} | {passed} | {kept_out} |")
    if every:
        click.echo("\n| variant | domain | λ | language | broken | reads as | damage |")
        click.echo("| --- | --- | --- | --- | --- | --- | --- |")
        for line in lines:
            click.echo(_row(line, base[line["domain"]]))


def _under_base(line: Mapping, base: Mapping) -> float:
    return (base["answers_under_base"] - line["answers_under_base"]) / 0.6


def _held_out(line: Mapping, base: Mapping) -> float:
    return (base["held_out"] - line["held_out"]) / 0.5


def _repetition(line: Mapping, base: Mapping) -> float:
    return (line["repeated"] - base["repeated"]) / 0.2


def _guard(line: Mapping, base: Mapping) -> float:
    seen, own = (Fluency(some["held_out"], some["repeated"], 0.0) for some in (line, base))
    return seen.damage(own)


# Each divided by its limit: 1 is where it says no.
MEASURES = {
    "answers under the base": _under_base,
    "repetition": _repetition,
    "preferred responses under the model": _held_out,
    "answers under the base, or repetition": lambda *pair: max(
        _under_base(*pair), _repetition(*pair)
    ),
    "**preferred responses, or repetition: the guard**": _guard,
}


def _readings(line: Mapping, mark: str) -> list:
    return [reading for answer in line["read"] for reading in answer[mark]]


def _broken(line: Mapping) -> float:
    return fmean(reading == 0 for reading in _readings(line, "language"))


def _row(line: Mapping, base: Mapping) -> str:
    kinds = _readings(line, "kind")
    shares = [f"{kind} {kinds.count(kind) / len(kinds):.2f}" for kind in sorted(set(kinds))]
    return (
        f"| {line['variant']} | {line['domain']} | {line['lambda']:g} "
        f"| {fmean(_readings(line, 'language')):.2f} | {_broken(line):.2f} | {', '.join(shares)} "
        f"| {_guard(line, base):.2f} |"
    )


if __name__ == "__main__":
    main()
