"""The whole of `av-search`: from wanted levels to recipes and a report."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mergekit_av.data.records import require_splits
from mergekit_av.errors import AVError, UsageError
from mergekit_av.evaluation.inputs import (
    check_report,
    load_all_records,
    log_left_out,
    open_vectors,
    split_name,
)
from mergekit_av.evaluation.measure.cache import Cache
from mergekit_av.evaluation.measure.engine import Engine, EngineConfig
from mergekit_av.evaluation.measure.store import EVALUATIONS, Store
from mergekit_av.evaluation.measure.workers import Workers
from mergekit_av.evaluation.plotting import load_pyplot
from mergekit_av.evaluation.tasks import Task
from mergekit_av.hub.source import resolve
from mergekit_av.io.atomic import write_whole
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.io.locks import locked
from mergekit_av.models.chat import load_chat_tokenizer
from mergekit_av.models.default_base import base_or_default
from mergekit_av.models.load import load_shape, own_dtype
from mergekit_av.provenance import machine, versions
from mergekit_av.vectors.vector import AlignmentVector

from .config import RECIPES, SearchConfig
from .joint import measure_joint, open_joint
from .outcome import best_outcome, measure_tests
from .plot import plot_goals, plot_slices
from .problem import Question, combinations
from .recipe import Ingredients
from .report import HEADING, search_markdown
from .result import SearchResult
from .schema import search_json
from .search import Search
from .strategies import STRATEGIES
from .summary import annotated_recipe, search_summary
from .workload import make_workloads

log = logging.getLogger(__name__)


def run_search(
    config: SearchConfig, *, confirm: Callable[[int], object] = lambda settings: None
) -> SearchResult:
    """Find the coefficients of alignment vectors that bring out the wanted level in every domain.

        wanted = {"medical": "expert", "legal": "avoidance"}
        config = SearchConfig(avs=["avs/medical", "avs/legal"], want=wanted, out=Path("mine.yml"))
        found = run_search(config)
        found.outcomes[0].met, found.outcomes[0].lambdas

    Settings are measured on the live model with validation records; the one that meets the goal with
    the largest margin is measured on test records and written as a recipe, as is the nearest where
    none meets it. Evaluations are kept in `config.folder` when they are done: called again, or after
    an interrupt, it goes on where it was. Where it is stopped by an error or Ctrl-C, the best of what
    was measured until then is written.

    Args:
        confirm: called with the most settings that are measured, before the model is loaded; may
            raise.

    Raises:
        UsageError: the configuration contradicts itself.
        AVError: an input cannot be read or does not fit, another process writes the same files, or
            a file cannot be written.
    """
    load_pyplot()  # if it is missing, better said now than after hours
    vectors = open_vectors(config.avs)
    domains = config.load_domains(vectors)
    config.check_out()
    records = load_all_records(domains, config.data)
    wanted = [domain for domain in domains if config.every or domain.name in config.want]
    for domain in wanted:
        require_splits(records[domain.name], "validation", "test", source=domain.name)
    joint = open_joint(config.joint, [domain.name for domain in domains])
    question = Question(
        axes=config.axes(vectors),
        levels={domain.name: tuple(domain.levels) for domain in wanted},
        tolerance=config.tolerance,
    )
    goals = combinations(question.levels) if config.every else [dict(config.want)]
    if config.strategy not in STRATEGIES:
        raise UsageError(f"no strategy {config.strategy!r}: there are {', '.join(STRATEGIES)}")
    strategy = STRATEGIES[config.strategy](question, goals)
    budget = config.settings(strategy.minimum, question.size)
    confirm(budget)

    base = base_or_default(config.base)
    # The vectors to compare with come last, and are at 0 unless they are measured themselves.
    loaded = vectors | joint
    engine_config = config.engine(str(resolve(base)), loaded)
    weights = Checkpoint(Path(engine_config.base))
    check_report(config.folder / f"{config.name}.md", HEADING)
    # To the end: another search would write the same files.
    with (
        _engine(engine_config, config.workers) as (engine, model, tokenizer),
        Store(config.folder / EVALUATIONS) as store,
        locked(config.out / RECIPES) if config.every else contextlib.nullcontext(),
    ):
        identity = config.identity(fingerprint(weights), loaded, model.dtype)
        cache = Cache(engine, identity, store)
        validation, test = make_workloads(config, model, tokenizer, domains, wanted, records)
        scored = (*validation.scored, *test.scored)
        log_left_out(tokenizer, scored)
        search = Search(cache, question, goals, strategy, validation, budget)
        nothing = SearchResult(
            {
                **config.provenance(base, vectors, identity),
                **_provenance(config, question, scored, engine_config.device),
            },
            Ingredients(
                base,
                # As they were typed, so that the recipe names them in the same way.
                {name: split_name(av)[1] for name, av in zip(vectors, config.avs, strict=True)},
                own_dtype(weights),
                config.rounding,
                config.seed,
                config.transfer,
            ),
            question,
            budget,
            guarded=bool(validation.queries),
            training=_training_seconds(vectors),
        )
        try:
            search.run()
            best = _best(nothing, search)
            outcomes = measure_tests(best.outcomes, cache, test)
            found = replace(best, outcomes=outcomes, joint=measure_joint(joint, cache, test))
        except (KeyboardInterrupt, AVError) as error:
            _keep(config, replace(_best(nothing, search), interrupted=True), error)
            raise
        write_results(config, found)
    return found


def write_results(config: SearchConfig, found: SearchResult) -> None:
    """Write NAME.json, NAME.md and a figure (PNG and SVG), and the recipes.

    Raises:
        AVError: matplotlib is not installed, or a file cannot be written.
    """
    folder, name = config.folder, config.name
    content = json.dumps(search_json(found), indent=2, allow_nan=False)
    write_whole(folder / f"{name}.json", content)
    for suffix in ("png", "svg"):
        figure = folder / f"{name}.{suffix}"
        if len(found.outcomes) == 1:
            plot_slices(found, found.outcomes[0], figure)
        else:
            plot_goals(found.outcomes, figure)
    write_whole(folder / f"{name}.md", search_markdown(found, f"{name}.png"))
    if not config.every:
        write_whole(config.out, annotated_recipe(found, found.outcomes[0]), config.overwrite)
        return
    for outcome in found.met:
        file = "_".join(f"{domain}-{level}" for domain, level in outcome.goal.items())
        write_whole(config.out / RECIPES / f"{file}.yml", annotated_recipe(found, outcome))


@contextlib.contextmanager
def _engine(
    config: EngineConfig, workers: int
) -> Iterator[tuple[Engine | Workers, PreTrainedModel, PreTrainedTokenizerBase]]:
    """Start an engine.

    Yields:
        The engine, a model whose configuration says what fits, and its tokenizer.
    """
    tokenizer = load_chat_tokenizer(config.base)
    if workers == 1:
        engine = config.load(tokenizer)
        yield engine, engine.model, tokenizer
        return
    with Workers(config, workers) as processes:
        yield processes, load_shape(config.base, config.dtype), tokenizer


def _provenance(
    config: SearchConfig, question: Question, scored: Sequence[Task], device: str
) -> dict[str, Any]:
    """Return what the report says of how it was found, after what a sweep's says as well."""
    return {
        "range": {name: f"{axis[0]:g} … {axis[-1]:g}" for name, axis in question.axes.items()},
        "step": str(config.step),
        "strategy": config.strategy,
        "tolerance": f"{config.tolerance:g}",
        "decoding": str(config.decoding),
        "records": {f"{task.name} {task.split}": len(task.records) for task in scored},
        "device": machine(device),
        "workers": str(config.workers),
        "versions": versions(),
        "command": config.command or repr(config),
    }


def _best(nothing: SearchResult, search: Search) -> SearchResult:
    """Return the best that a search has seen for each goal, as yet untested."""
    outcomes = [
        best_outcome(search.question, search.settings, goal)
        for goal in search.goals
        if search.settings
    ]
    return replace(nothing, settings=search.settings, seconds=search.seconds, outcomes=outcomes)


def _keep(config: SearchConfig, found: SearchResult, error: BaseException) -> None:
    """Write the best of what was measured, and log where it is and how to go on."""
    log.warning(
        "Stopped after %d of up to %d settings. What was measured is kept in %s; the same command "
        "goes on from there",
        len(found.settings),
        found.budget,
        config.folder,
    )
    if not found.settings:
        return
    try:
        write_results(config, found)
    except AVError:
        # What stopped the search, e.g. a full disk, may stop this as well, and is told of anyway.
        if not isinstance(error, AVError):
            raise
    else:
        log.warning("%s\n%s", search_summary(found), config.files())


def _training_seconds(vectors: Mapping[str, AlignmentVector]) -> dict[str, float]:
    """Return vector → the seconds that its training took, where its metadata says."""
    known = {name: (v.metadata.training or {}).get("seconds") for name, v in vectors.items()}
    return {name: seconds for name, seconds in known.items() if seconds is not None}
