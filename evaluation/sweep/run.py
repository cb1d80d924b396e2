"""The whole of `av-sweep`: from vectors, a base and records to a report."""

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mergekit_av.data.domain import Domain, built_in_domains, load_domain
from mergekit_av.errors import AVError
from mergekit_av.evaluation.inputs import (
    check_report,
    load_all_records,
    load_domains,
    log_left_out,
    open_vectors,
)
from mergekit_av.evaluation.measure.cache import Cache
from mergekit_av.evaluation.measure.engine import Engine
from mergekit_av.evaluation.measure.store import EVALUATIONS, Store
from mergekit_av.evaluation.plotting import load_pyplot
from mergekit_av.hub.source import resolve
from mergekit_av.io.atomic import write_whole
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.io.locks import locked
from mergekit_av.models.chat import load_chat_tokenizer
from mergekit_av.models.default_base import base_or_default
from mergekit_av.provenance import machine, versions

from .card import check_card, write_card
from .config import SweepConfig
from .plan import Plan, count_records, make_plans
from .plot import plot_sweep
from .prompting import baseline
from .report import HEADING, REPORT, sweep_markdown
from .result import Sweep, SweepResult
from .schema import sweep_csv, sweep_json
from .summary import sweep_summary
from .sweep import sweep

log = logging.getLogger(__name__)


def run_sweep(
    config: SweepConfig,
    *,
    confirm: Callable[[int], object] = lambda evaluations: None,
    show: Callable[[str], object] = lambda text: None,
) -> SweepResult:
    """Measure preference accuracy, and the state of the language, at every λ of alignment vectors.

        found = run_sweep(SweepConfig(avs=["avs/medical"], out=Path("sweeps/medical")))
        found.sweeps[0].usable_range

    Writes report.md, sweep.csv, sweep.json and the figure to `config.out`, and keeps every evaluation
    there when it is done: called again, or after an interrupt, it goes on where it was. Where it is
    stopped by an error or Ctrl-C, there is a report of what was measured until then.

    Args:
        confirm: called with the number of evaluations, before the model is loaded; may raise.
        show: called with each part of the summary once its files are written.

    Raises:
        UsageError: the configuration contradicts itself.
        AVError: an input cannot be read or does not fit, another process writes to the folder, or a
            file cannot be written.
    """
    load_pyplot()  # if it is missing, better said now than after hours
    lambdas = sorted({0.0, *config.lambdas})
    vectors = open_vectors(config.avs)
    domains = load_domains(config.domains, vectors)
    records = load_all_records(domains, config.data)
    calibrated = {
        name for name in vectors if any(r.split == "validation" for r in records.get(name, []))
    }
    sets = len(vectors) * (len(domains) + bool(config.generate)) + len(calibrated)
    confirm(len(lambdas) * sets)
    check_report(config.out / REPORT, HEADING)
    base = base_or_default(config.base)
    base_fingerprint = fingerprint(Checkpoint(resolve(base)))
    if config.write_card:
        for name, vector in vectors.items():
            check_card(name, vector, calibrated, base_fingerprint)
    tokenizer = load_chat_tokenizer(base)
    engine = config.engine(base, vectors).load(tokenizer)
    plans = make_plans(config, engine, list(vectors), domains, records, calibrated)
    log_left_out(tokenizer, [task for plan in plans for task in plan.tasks])
    identity = config.identity(base_fingerprint, vectors, engine.model.dtype)
    found = SweepResult(
        {
            **config.provenance(base, vectors, identity),
            "decoding": str(config.decoding),
            "records": count_records(plans),
            "device": machine(str(engine.model.device)),
            "versions": versions(),
            "command": config.command or repr(config),
        },
        domains,
    )
    # To the end: another sweep would write the same report, and a training other vectors.
    with contextlib.ExitStack() as held:
        store = held.enter_context(Store(config.out / EVALUATIONS))
        for vector in vectors.values() if config.write_card else ():
            held.enter_context(locked(vector.folder))
        try:
            _measure(found, Cache(engine, identity, store), plans, lambdas, config)
        except (KeyboardInterrupt, AVError):
            _keep(found, config.out, len(lambdas) * len(plans))
            raise
        write_results(found, config.out)
        own = _with_own_records(domains, config.data)
        for done, plan in zip(found.sweeps, plans, strict=True):
            show(sweep_summary(done))
            if config.write_card:
                scored = {t.split: len(t.records) for t in plan.tasks if t.name == done.domain}
                vector = vectors[done.vector]
                write_card(vector, done, found.provenance, scored, done.domain in own, config.out)
                show(f"  written to {vector.folder}")
    return found


def write_results(found: SweepResult, folder: Path) -> None:
    """Write sweep.csv, sweep.json, report.md and a figure (PNG and SVG) to a folder.

    Raises:
        AVError: matplotlib is not installed, or a file cannot be written.
    """
    write_whole(folder / "sweep.csv", sweep_csv(found))
    write_whole(folder / "sweep.json", json.dumps(sweep_json(found), indent=2, allow_nan=False))
    for suffix in ("png", "svg"):
        plot_sweep(found.sweeps, found.domains, folder / f"sweep.{suffix}")
    write_whole(folder / REPORT, sweep_markdown(found))


def _measure(
    found: SweepResult,
    cache: Cache[Engine],
    plans: Sequence[Plan],
    lambdas: Sequence[float],
    config: SweepConfig,
) -> None:
    """Fill the result; where it is stopped, with all that was measured at a λ."""
    for plan in plans:
        if config.prompting and plan.own and plan.own.domain.prompts:
            found.prompting[plan.own.name] = baseline(cache, plan.own)
    for plan in plans:
        points, queries = [], plan.queries
        try:
            for point in sweep(cache, plan.vector, lambdas, plan.tasks, queries, config.decoding):
                points.append(point)
        finally:
            if points:
                points.sort(key=lambda point: point.lambdas[plan.vector])
                own = plan.own.name if plan.own else None
                asked = {record.id: record.query for record in queries.records} if queries else {}
                found.sweeps.append(Sweep(plan.vector, own, points, asked))


def _keep(found: SweepResult, out: Path, points: int) -> None:
    """Write a report of what was measured, and log where it is and how to go on."""
    done = sum(len(sweep.points) for sweep in found.sweeps)
    kept = f"What was measured is kept in {out}"
    if done:
        with contextlib.suppress(AVError):  # a full disk is what may have stopped it
            write_results(found, out)
            kept += f", and the report so far is {out / REPORT}"
    log.warning(
        "Stopped after %d of %d points. %s; the same command goes on from there",
        done,
        points,
        kept,
    )


def _with_own_records(domains: Sequence[Domain], data: Mapping[str, str]) -> set[str]:
    """Return the domains whose records are the user's own, which may be of a built-in domain."""
    built_in = [load_domain(name) for name in built_in_domains()]
    return {domain.name for domain in domains if domain not in built_in} | set(data)
