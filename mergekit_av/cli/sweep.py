"""`av-sweep`: what does λ do?"""

import contextlib
import os
import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_av.cli.options.measuring import (
    answer_options,
    model_options,
    record_options,
    vector_options,
)
from mergekit_av.data.domain import Domain, built_in_domains, load_domain
from mergekit_av.errors import AVError
from mergekit_av.evaluation.inputs import (
    load_all_records,
    load_domains,
    open_vectors,
    tell,
    tokenizer_of,
)
from mergekit_av.io.atomic import write_whole
from mergekit_av.io.locks import locked
from mergekit_av.provenance import machine, versions

from .command import command, say

if TYPE_CHECKING:
    from mergekit_av.evaluation.measure.cache import Evaluator
    from mergekit_av.evaluation.sweep.calibration import Best
    from mergekit_av.evaluation.sweep.report import Report
    from mergekit_av.evaluation.sweep.result import Sweep
    from mergekit_av.evaluation.tasks import Task
    from mergekit_av.models.decoding import Decoding
    from mergekit_av.vectors.vector import AlignmentVector

# More evaluations than this are asked about first.
MANY = 500


@command
@vector_options("several are swept one after the other")
@click.option(
    "--lambda", "lambdas", default="-1.5:1.5:0.1", metavar="LOW:HIGH:STEP|A,B,C",
    help="The λ of each vector; 0 is always among them.",
)  # fmt: skip
@click.option(
    "--domain", "domains", multiple=True, metavar="NAME|FILE.yml",
    help="Domain to score; may be given several times.  [default: the vectors' own]",
)  # fmt: skip
@record_options
@answer_options(8, "Queries to answer at each λ, for the usable range; 0 leaves it unmeasured.")
@click.option("--prompting/--no-prompting", default=True, help="Compare with asking in words.")
@model_options(dtype="float32", why="as mergekit writes it")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the report; started again with it, a sweep goes on where it was.",
)  # fmt: skip
@click.option(
    "--write-card", is_flag=True,
    help="Store each level's λ in the vectors' folders, for Knobs and the model card.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help=f"Do not ask before more than {MANY} evaluations.")
def av_sweep(
    base, avs, lambdas, domains, data, max_records, generate, decoding, prompting, rounding,
    seed, dtype, device, transfer, out, write_card, yes,
):  # fmt: skip
    """Preference accuracy, and the state of the language, at every λ of alignment vectors.

    Each vector is moved on its own, the others at 0. The domain of its name is scored on validation
    records, which choose the best λ of each level, and on test records, which report it; other
    domains on test records. Writes report.md, sweep.csv, sweep.json and the figure to OUT; every
    evaluation is kept there when it is done.
    """
    from mergekit_av.evaluation.plotting import load_pyplot
    from mergekit_av.evaluation.sweep.sweep import parse_lambdas

    try:
        values = sorted({0.0, *parse_lambdas(lambdas)})
    except AVError as error:
        raise click.UsageError(error.message) from None
    load_pyplot()  # if it is missing, better said now than after hours
    vectors = open_vectors(avs)
    scored = load_domains(domains, vectors)
    records = load_all_records(scored, data)
    calibrated = {
        name for name in vectors if any(r.split == "validation" for r in records.get(name, []))
    }
    count = len(values) * (len(vectors) * (len(scored) + bool(generate)) + len(calibrated))
    if count > MANY and not yes:
        click.confirm(
            f"{len(values)} λ of {len(vectors)} vectors make {count} evaluations, less those that "
            f"{out} holds. Go on?",
            abort=True,
            err=True,
        )

    from mergekit_av.evaluation.formatting import check_report
    from mergekit_av.evaluation.measure.cache import Evaluator, Identity
    from mergekit_av.evaluation.measure.engine import Setup
    from mergekit_av.evaluation.measure.store import EVALUATIONS, Store
    from mergekit_av.evaluation.sweep.report import HEADING, REPORT, Report
    from mergekit_av.evaluation.tasks import make_task
    from mergekit_av.hub.source import resolve
    from mergekit_av.io.checkpoint import Checkpoint
    from mergekit_av.io.fingerprint import fingerprint
    from mergekit_av.models.default_base import base_or_default

    check_report(out / REPORT, HEADING)
    source = base_or_default(base)
    identity = fingerprint(Checkpoint(resolve(source)))
    if write_card:
        for name, vector in vectors.items():
            _check_card(name, vector, calibrated, identity)
    tokenizer = tokenizer_of(source)
    folders = {name: str(vector.folder) for name, vector in vectors.items()}
    measurer = Setup(source, folders, dtype, device, rounding, seed, transfer).measurer(tokenizer)
    model = measurer.model

    def task(domain: Domain, split: str, limit: int | None = max_records, new_tokens: int = 0):
        return make_task(
            model, tokenizer, domain, records[domain.name], split,
            limit=limit, new_tokens=new_tokens,
        )  # fmt: skip

    tests = {domain.name: task(domain, "test") for domain in scored}
    plans = []
    for name in vectors:
        own = tests.get(name)
        domain = own.domain if own else scored[0]
        plans.append(
            Plan(
                name,
                own,
                [*tests.values(), *([task(domain, "validation")] if name in calibrated else [])],
                task(domain, "test", generate, decoding.max_new_tokens) if generate else None,
            )
        )
    tell(tokenizer, [task for plan in plans for task in plan.tasks])
    report = Report(
        {
            "base": source,
            "base fingerprint": identity,
            "vectors": {name: str(vector.folder) for name, vector in vectors.items()},
            "transfer": transfer,
            "dtype": str(model.dtype).removeprefix("torch."),
            "rounding": f"{rounding}, seed {seed}",
            "decoding": str(decoding),
            "records": _counts(plans),
            "device": machine(str(model.device)),
            "versions": versions(),
            "command": shlex.join(["av-sweep", *sys.argv[1:]]),
        },
        scored,
    )
    # To the end: another sweep would write the same report, and a training other vectors.
    hold = click.get_current_context().with_resource
    store = hold(Store(out / EVALUATIONS))
    for vector in vectors.values() if write_card else ():
        hold(locked(vector.folder))
    evaluator = Evaluator(
        measurer, Identity.of(identity, vectors, rounding, seed, model.dtype), store
    )
    try:
        _measure(report, evaluator, plans, values, decoding, prompting)
    except (KeyboardInterrupt, AVError):
        _keep(report, out, len(values) * len(plans))
        raise
    report.write(out)
    # Of a built-in domain, the records may be one's own nevertheless.
    built_in = [load_domain(name) for name in built_in_domains()]
    own = {domain.name for domain in scored if domain not in built_in}
    own |= {text.partition("=")[0] for text in data}
    for done, plan in zip(report.sweeps, plans, strict=True):
        say(summary(done))
        if write_card:
            _write_card(vectors[plan.vector], plan, done, report.source, out, own)
    say(f"Report: {out / REPORT}   Figure: {out / 'sweep.png'}   Numbers: {out / 'sweep.csv'}")


@dataclass(frozen=True)
class Plan:
    """What is measured of one vector.

    Attributes:
        own: the test records of the domain that has the vector's name; None where it is not scored.
        tasks: what is scored at each λ: the test records of every domain, and its own validation
            records.
        written: the queries to answer; None for none.
    """

    vector: str
    own: "Task | None"
    tasks: "list[Task]"
    written: "Task | None"


def _measure(
    report: "Report", evaluator: "Evaluator", plans: list[Plan], values: list[float],
    decoding: "Decoding", prompting: bool,
) -> None:  # fmt: skip
    """Fill the report; where it is stopped, with all that was measured at a λ."""
    from mergekit_av.evaluation.sweep.prompting import baseline
    from mergekit_av.evaluation.sweep.result import Sweep
    from mergekit_av.evaluation.sweep.sweep import sweep

    for plan in plans:
        if prompting and plan.own and plan.own.domain.prompts:
            report.prompting[plan.own.name] = baseline(evaluator, plan.own)
    for plan in plans:
        points, written = [], plan.written
        queries = {record.id: record.query for record in written.records} if written else {}
        try:
            for point in sweep(evaluator, plan.vector, values, plan.tasks, written, decoding):
                points.append(point)
        finally:
            if points:
                points.sort(key=lambda point: point.lambdas[plan.vector])
                own = plan.own.name if plan.own else None
                report.sweeps.append(Sweep(plan.vector, own, points, queries))


def _keep(report: "Report", out: Path, points: int) -> None:
    """Write what there is of a report, and say where and how to go on."""
    done = sum(len(sweep.points) for sweep in report.sweeps)
    kept = f"What was measured is kept in {out}"
    if done:
        with contextlib.suppress(AVError):  # a full disk is what may have stopped it
            report.write(out)
            kept += f", and the report so far is {out / 'report.md'}"
    say(
        f"Stopped after {done} of {points} points. {kept}; the same command goes on from there",
        err=True,
    )


def summary(sweep: "Sweep") -> str:
    """The best λ of each level, in a few lines."""
    usable = sweep.usable_range
    span = f"λ from {usable[0]:g} to {usable[1]:g}" if usable else "not measured"
    lines = [f"{sweep.vector}: usable range {span}"]

    def line(level: str, best: "Best") -> str:
        share = best.test.accuracy[level]
        state = {True: "usable", False: "the language has broken down", None: "language unknown"}
        return (
            f"  {level}: λ {best.value:+g} ({state[sweep.usable(best.value)]}), test accuracy "
            f"{share.value:.2f} ({share.low:.2f}–{share.high:.2f})"
            + (", dominant" if best.dominant else "")
        )

    if sweep.calibration is not None:
        for level, best in sweep.calibration.best.items():
            lines.append(line(level, best))
            usable_best = sweep.calibration.best_usable.get(level, best)
            if usable_best.value != best.value:
                lines.append(line(level, usable_best))
    return "\n".join(lines)


def _check_card(name: str, vector: "AlignmentVector", calibrated: set[str], identity: str) -> None:
    """Raise AVError, before anything is measured, where a vector could get no calibration."""
    from huggingface_hub.constants import HF_HUB_CACHE

    why = None
    if name not in calibrated:
        why = f"no validation records of a domain {name!r} are scored"
    elif vector.metadata.base.fingerprint != identity:
        why = "λ would be measured on another base than its own"
    elif vector.folder.is_relative_to(HF_HUB_CACHE):
        why = "it is in the Hub's cache; download it to a folder (hf download ID --local-dir DIR)"
    elif not os.access(vector.folder, os.W_OK):
        why = f"{vector.folder} cannot be written"
    if why:
        raise AVError(f"--write-card has nothing to write for {name!r}: {why}")


def _write_card(
    vector: "AlignmentVector",
    plan: Plan,
    sweep: "Sweep",
    source: Mapping[str, Any],
    out: Path,
    own: Collection[str],
) -> None:
    from mergekit_av.evaluation.sweep.calibration import for_card
    from mergekit_av.vectors.card import FIGURE

    about = {
        "domain": sweep.domain,
        "records": {
            task.split: len(task.records) for task in plan.tasks if task.name == sweep.domain
        },
        "own_records": sweep.domain in own,
        "base": source["base fingerprint"],
        "dtype": source["dtype"],
        "rounding": source["rounding"],
        "decoding": source["decoding"],
        "lambdas": [point.lambdas[sweep.vector] for point in sweep.points],
        "versions": source["versions"],
    }
    # What is there now: hours ago it may have been another, or have had another card.
    found = type(vector).open(vector.folder)
    if found.metadata.fingerprint != vector.metadata.fingerprint:
        raise AVError(
            f"{vector.folder} is not the vector any more that was measured: its card stays as it is"
        )
    write_whole(vector.folder / FIGURE, (out / FIGURE).read_bytes())
    found.write_calibration(for_card(sweep.calibration, sweep.usable_range, about))
    say(f"  written to {vector.folder}")


def _counts(plans: list[Plan]) -> dict[str, str]:
    """How many records each task scores, for the report."""
    tasks = {(task.name, task.split): task for plan in plans for task in plan.tasks}

    def less(task: "Task") -> str:
        reasons = [(task.too_long, "longer than the context"), (task.equal, "of equal responses")]
        said = [f"{len(ids)} {why}" for ids, why in reasons if ids]
        return f" ({', '.join(said)} left out)" if said else ""

    return {
        f"{name} {split}": f"{len(task.records)}{less(task)}"
        for (name, split), task in tasks.items()
    }
