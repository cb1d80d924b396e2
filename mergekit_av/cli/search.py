"""`av-search`: from wanted levels to the coefficients that bring them out."""

import contextlib
import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
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
from mergekit_av.io.atomic import check_file, check_writable, write_whole
from mergekit_av.io.locks import locked
from mergekit_av.provenance import machine, versions

from .command import command, say

if TYPE_CHECKING:
    from mergekit_av.evaluation.measure.engine import Setup
    from mergekit_av.evaluation.search.report import SearchReport
    from mergekit_av.vectors.vector import AlignmentVector

RUNS, USUAL_RANGE = Path("searches"), "-2:2"
# With --all the folder of the recipes, in OUT.
RECIPES = "recipes"
# More settings than this are asked about first.
MANY = 500


@command
@vector_options("each gets a coefficient")
@click.option(
    "--want", "wants", multiple=True, metavar="DOMAIN=LEVEL",
    help="The level that is to be dominant in a domain, which need not be a vector's own.",
)  # fmt: skip
@click.option("--all", "every", is_flag=True, help="Look for every combination of levels.")
@click.option(
    "--domain", "domains", multiple=True, metavar="NAME|FILE.yml",
    help="With --all the domains to combine; else domains to report beside the wanted ones, or a "
    "file that describes a wanted one.  [default: the vectors' own]",
)  # fmt: skip
@record_options
@click.option(
    "--range", "ranges", multiple=True, metavar="[NAME=]LOW:HIGH",
    help="Where λ is looked for; for one vector, or for all that have no range of their own.  "
    f"[default: {USUAL_RANGE}]",
)  # fmt: skip
@click.option("--step", default="0.1", help="λ is a multiple of this.")
@click.option(
    "--strategy", type=click.Choice(["surface", "hierarchical", "grid"]), default="surface",
    help="Fit surfaces to some settings; from a coarse grid to finer ones; or every setting.",
)  # fmt: skip
@click.option(
    "--budget", type=click.IntRange(min=1),
    help="Settings to measure at most.  [default: twice what the strategy needs to say anything, "
    "three times with --all; the whole grid]",
)  # fmt: skip
@click.option(
    "--tolerance", type=click.FloatRange(min=0), default=1.0,
    help="How much of what the fluency guard allows may be used; with `inf` it is only reported, of "
    "what is found.",
)  # fmt: skip
@answer_options(
    4, "Queries of each domain to answer at each setting, for the fluency guard; 0 for no guard."
)
@click.option(
    "--joint", multiple=True, metavar="AV",
    help="Vector that `av-train --joint` trained for a combination, to compare with.",
)  # fmt: skip
@model_options(dtype="auto", why="which the recipe writes in any case")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1,
    help="Processes that measure side by side, by Ray; each loads the model.",
)  # fmt: skip
@click.option(
    "--runs", type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the evaluations and the report; that of av-sweep will do as well. Started again "
    f"with it, a search goes on where it was.  [default: {RUNS}; OUT with --all]",
)  # fmt: skip
@click.option(
    "--out", required=True, type=click.Path(path_type=Path),
    help="The recipe to write (.yml); with --all the folder for the report and the recipes.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the recipe if it is there.")
@click.option("--yes", is_flag=True, help=f"Do not ask before more than {MANY} settings.")
def av_search(
    base, avs, wants, every, domains, data, max_records, ranges, step, strategy, budget, tolerance,
    generate, decoding, joint, rounding, seed, dtype, device, transfer, workers, runs, out,
    overwrite, yes,
):  # fmt: skip
    """Find the coefficients of alignment vectors that bring out the wanted level in every domain.

    Settings are measured on the live model: which level the validation records prefer, and whether
    the answers to validation queries are still language. The one that meets the wishes with the
    largest margin is reported on test records and written as a recipe for mergekit-yaml. Ends with
    1, and writes the nearest, where no setting meets them.
    """
    from mergekit_av.data.records import require_splits
    from mergekit_av.evaluation.plotting import load_pyplot

    load_pyplot()  # if it is missing, better said now than after hours
    vectors = open_vectors(avs)
    goal, scored = _wanted(wants, every, domains, vectors)
    if not every and out.suffix not in (".yml", ".yaml"):
        raise click.UsageError(f"--out must be a recipe, such as {out}.yml")
    if every:
        check_writable(out)
    else:
        check_file(out, overwrite)
    records = load_all_records(scored, data)
    wanted = [domain for domain in scored if every or domain.name in goal]
    for domain in wanted:
        require_splits(records[domain.name], "validation", "test", source=domain.name)
    rivals = _open_joint(joint, scored)

    from mergekit_av.evaluation.search.problem import Question, combinations
    from mergekit_av.evaluation.search.strategies import STRATEGIES

    question = Question(
        axes=_axes(ranges, step, vectors),
        levels={domain.name: tuple(domain.levels) for domain in wanted},
        tolerance=tolerance,
    )
    goals = combinations(question.levels) if every else [goal]
    chosen = STRATEGIES[strategy](question, goals)
    budget = _budget(budget, strategy, chosen.minimum, question.size, every)
    if budget > MANY and not yes:
        click.confirm(
            f"Up to {budget} settings will be measured, less those that are kept. Go on?",
            abort=True, err=True,
        )  # fmt: skip

    from mergekit_av.evaluation.formatting import check_report
    from mergekit_av.evaluation.measure.cache import Evaluator, Identity
    from mergekit_av.evaluation.measure.engine import Setup
    from mergekit_av.evaluation.measure.store import EVALUATIONS, Store
    from mergekit_av.evaluation.search.recipe import Ingredients
    from mergekit_av.evaluation.search.report import HEADING, SearchReport, wanted_levels
    from mergekit_av.evaluation.search.search import Records, Search
    from mergekit_av.evaluation.tasks import make_task
    from mergekit_av.hub.source import resolve
    from mergekit_av.io.checkpoint import Checkpoint
    from mergekit_av.io.fingerprint import fingerprint
    from mergekit_av.models.default_base import base_or_default
    from mergekit_av.models.load import default_device, own_dtype

    source = base_or_default(base)
    # The vectors to compare with come last, and are at 0 unless they are measured themselves.
    loaded = vectors | rivals
    setup = Setup(
        base=str(resolve(source)),
        vectors={name: str(vector.folder) for name, vector in loaded.items()},
        dtype=dtype, device=device or default_device(),
        rounding=rounding, seed=seed, transfer=transfer,
    )  # fmt: skip
    weights = Checkpoint(Path(setup.base))
    runs = runs or (out if every else RUNS)
    check_report(runs / f"{_name(out, every)}.md", HEADING)
    # To the end: another search would write the same files.
    with (
        _engine(setup, workers) as (engine, model, tokenizer),
        Store(runs / EVALUATIONS) as store,
        locked(out / RECIPES) if every else contextlib.nullcontext(),
    ):
        identity = Identity.of(fingerprint(weights), loaded, rounding, seed, model.dtype)
        evaluator = Evaluator(engine, identity, store)

        def chosen_records(domains: list[Domain], split: str, guard: bool) -> Records:
            def task(domain: Domain, **options: int):
                some = records[domain.name]
                return make_task(model, tokenizer, domain, some, split, **options)

            return Records(
                tuple(task(domain, limit=max_records) for domain in domains),
                tuple(
                    task(domain, limit=generate, new_tokens=decoding.max_new_tokens)
                    for domain in (wanted if guard else ())
                ),
                decoding,
            )

        # Without a limit to the damage, only what is found is looked at.
        validation = chosen_records(wanted, "validation", bool(generate) and tolerance < math.inf)
        test = chosen_records(scored, "test", bool(generate))
        tell(tokenizer, (*validation.scored, *test.scored))
        search = Search(evaluator, question, goals, chosen, validation, budget)
        report = SearchReport(
            source={
                "base": source,
                "base fingerprint": identity.base,
                "vectors": {name: str(vector.folder) for name, vector in vectors.items()},
                "transfer": transfer,
                "dtype": identity.dtype,
                "rounding": f"{rounding}, seed {seed}",
                "range": {name: f"{v[0]:g} … {v[-1]:g}" for name, v in question.axes.items()},
                "step": step,
                "strategy": strategy,
                "tolerance": f"{tolerance:g}",
                "decoding": str(decoding),
                "records": {
                    f"{task.name} {task.split}": len(task.records)
                    for task in (*validation.scored, *test.scored)
                },
                "device": machine(setup.device),
                "workers": str(workers),
                "versions": versions(),
                "command": shlex.join(["av-search", *sys.argv[1:]]),
            },
            ingredients=Ingredients(
                source, _as_given(avs, vectors), own_dtype(weights), rounding, seed, transfer
            ),
            search=search,
            training=_training_seconds(vectors),
        )
        try:
            search.run()
            report.conclude(goals)
            report.test(evaluator, test)
            report.compare(rivals, evaluator, test)
        except (KeyboardInterrupt, AVError) as error:
            say(
                f"Stopped after {len(search.settings)} of up to {budget} settings. What was measured "
                f"is kept in {runs}; the same command goes on from there",
                err=True,
            )
            if isinstance(error, KeyboardInterrupt) and search.settings:
                report.interrupted = True
                report.conclude(goals)
                _write(report, runs, out, every, overwrite, err=True)
            raise
        _write(report, runs, out, every, overwrite)
    if not every and not report.outcomes[0].met:
        raise AVError(
            f"no setting tried brings out {wanted_levels(report.outcomes[0])}: {out} is the nearest"
        )


def _name(out: Path, every: bool) -> str:
    """Of the report's files."""
    return "combinations" if every else out.stem


def _write(
    report: "SearchReport", runs: Path, out: Path, every: bool, overwrite: bool, err: bool = False
) -> None:
    """Everything to its files, and a summary to stdout; with `err` to stderr."""
    name = _name(out, every)
    report.write(runs, name)
    if every:
        for found in report.outcomes:
            if found.met:
                file = "_".join(f"{domain}-{level}" for domain, level in found.goal.items())
                write_whole(out / RECIPES / f"{file}.yml", report.recipe(found))
    else:
        write_whole(out, report.recipe(report.outcomes[0]), overwrite)
    where = f"Recipes: {out / RECIPES}" if every else f"Recipe: {out}"
    say(f"{report.summary()}\n{where}   Report: {runs / name}.md", err=err)


@contextlib.contextmanager
def _engine(setup: "Setup", workers: int) -> Iterator[tuple[Any, Any, Any]]:
    """What measures, a model whose configuration says what fits, and its tokenizer."""
    from mergekit_av.models.load import load_shape

    tokenizer = tokenizer_of(setup.base)
    if workers == 1:
        measurer = setup.measurer(tokenizer)
        yield measurer, measurer.model, tokenizer
        return

    from mergekit_av.evaluation.measure.workers import Workers

    with Workers(setup, workers) as processes:
        yield processes, load_shape(setup.base, setup.dtype), tokenizer


def _wanted(
    wants: tuple[str, ...], every: bool, names: tuple[str, ...], vectors: Mapping[str, Any]
) -> tuple[dict[str, str], list[Domain]]:
    """The goal (empty with --all), and all domains to score: those of the goal first."""
    if every == bool(wants):
        raise click.UsageError("say what is wanted: --want DOMAIN=LEVEL for each domain, or --all")
    if every:
        return {}, load_domains(names, vectors)
    described = {domain.name: domain for domain in map(load_domain, names)}
    goal, scored = {}, {}
    for text in wants:
        name, sign, level = text.partition("=")
        if not (name and sign and level):
            raise click.UsageError(f"--want must be DOMAIN=LEVEL, not {text!r}")
        if name in goal:
            raise click.UsageError(f"two levels are wanted for {name}: give one")
        scored[name] = domain = described.get(name) or load_domain(name)
        if level not in domain.levels:
            raise AVError(f"{name} has no level {level!r}: there are {', '.join(domain.levels)}")
        goal[name] = level
    own = {name: load_domain(name) for name in vectors if name in built_in_domains()}
    return goal, list({**scored, **described, **own}.values())


def _axes(
    ranges: tuple[str, ...], step: str, vectors: Mapping[str, Any]
) -> dict[str, tuple[float, ...]]:
    """Vector → the λ it may have."""
    found: dict[str | None, tuple[float, ...]] = {}
    for text in ranges:
        name, sign, span = text.rpartition("=")
        if sign and name not in vectors:
            raise click.UsageError(
                f"--range names {name!r}, and the vectors are {', '.join(vectors)}"
            )
        if (name or None) in found:
            raise click.UsageError(f"--range is given twice for {name or 'all vectors'}")
        found[name or None] = _axis(span, step)
    usual = found.get(None) or _axis(USUAL_RANGE, step)
    return {name: found.get(name, usual) for name in vectors}


def _axis(span: str, step: str) -> tuple[float, ...]:
    from mergekit_av.evaluation.search.problem import axis

    low, _, high = span.partition(":")
    try:
        numbers = [Decimal(value) for value in (low, high, step)]
    except InvalidOperation:
        numbers = []
    if not numbers or not all(number.is_finite() for number in numbers):
        raise click.UsageError(
            f"--range must be like -2:2 and --step like 0.1, not {span!r} and {step!r}"
        )
    try:
        return axis(*numbers)
    except AVError as error:
        raise click.UsageError(error.message) from None


def _budget(given: int | None, strategy: str, minimum: int, size: int, every: bool) -> int:
    if given is None:
        given = minimum if strategy == "grid" else (3 if every else 2) * minimum
    elif given < minimum:
        raise click.UsageError(
            f"--budget {given} is too small: the strategy {strategy!r} needs {minimum} settings here"
        )
    return min(given, size)


def _open_joint(avs: tuple[str, ...], scored: list[Domain]) -> "dict[str, AlignmentVector]":
    """The vectors to compare with, under names that no other has."""
    from mergekit_av.vectors.vector import AlignmentVector

    opened = {f"joint {number}": AlignmentVector.open(av) for number, av in enumerate(avs, 1)}
    for vector in opened.values():
        goal = (vector.metadata.training or {}).get("joint")
        if not goal:
            raise AVError(f"{vector.folder} was not trained by `av-train --joint`")
        for name in goal:
            if name not in {domain.name for domain in scored}:
                raise AVError(f"{vector.folder} is about {name}, which is not scored: add --domain")
    return opened


def _training_seconds(vectors: Mapping[str, "AlignmentVector"]) -> dict[str, float]:
    known = {name: (v.metadata.training or {}).get("seconds") for name, v in vectors.items()}
    return {name: seconds for name, seconds in known.items() if seconds is not None}


def _as_given(avs: tuple[str, ...], vectors: Mapping[str, Any]) -> dict[str, str]:
    """Name → the vector as it was typed, so that a recipe names it in the same way."""
    return {name: av.removeprefix(f"{name}=") for name, av in zip(vectors, avs, strict=True)}
