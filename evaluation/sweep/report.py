"""The Markdown report of a sweep, in the form of the paper's tables."""

from mergekit_av.data.domain import Domain
from mergekit_av.evaluation.accuracy import Result
from mergekit_av.evaluation.rendering import (
    in_words,
    mean_log_probs,
    share,
    shares,
    with_interval,
    yes,
)
from mergekit_av.models.generation import Answer
from mergekit_av.text.markdown import facts, table, text

from .calibration import Calibration
from .prompting import Cost
from .result import Sweep, SweepResult
from .sweep import Point

REPORT, HEADING = "report.md", "# λ sweep"


def sweep_markdown(found: SweepResult) -> str:
    """Return the content of report.md."""
    figure = "![Preference accuracy against λ](sweep.png)"
    parts = [HEADING, facts(in_words(found.provenance)), figure]
    for sweep in found.sweeps:
        parts += [f"## {sweep.vector}", *_vector(found, sweep)]
    return "\n\n".join(parts) + "\n"


def _vector(found: SweepResult, sweep: Sweep) -> list[str]:
    parts = [_range(sweep)]
    others = [domain for domain in found.domains if domain.name != sweep.domain]
    if (calibration := sweep.calibration) is not None:
        own = next(domain for domain in found.domains if domain.name == sweep.domain)
        prompting = found.prompting.get(own.name, {})
        binary = [domain for domain in others if len(domain.levels) == 2]
        parts += ["### In its own domain", _in_domain(sweep, calibration, own, prompting, binary)]
    if others:
        parts += ["### In other domains", _out_of_domain(sweep, others)]
    if sweep.specificities:
        parts += ["### What a unit of λ moves", _specificity(sweep)]
    parts += ["### Change over the sweep", _changes(sweep, found.domains)]
    parts += ["### Every λ", _every(sweep, found.domains)]
    if any(point.answers for point in sweep.points):
        parts += ["### Answers", *_answers(sweep, str(found.provenance["decoding"]))]
    return parts


def _range(sweep: Sweep) -> str:
    if sweep.usable_range is None:
        return "Usable range: not measured (`--generate 0`)."
    low, high = sweep.usable_range
    says = f"**Usable range: λ from {low:g} to {high:g}.** "
    if (low, high) == (sweep.lambdas[0], sweep.lambdas[-1]):
        return says + "The language held at every λ of the sweep."
    return says + (
        "Beyond it this is no longer language: the responses that it prefers are less probable to "
        "it, or its answers more repetitive or more often without an end, than with the base, by "
        "more than the guard allows (`mergekit_av.evaluation.fluency`)."
    )


def _in_domain(
    sweep: Sweep,
    calibration: Calibration,
    own: Domain,
    prompting: dict[str | None, tuple[Result, Cost]],
    binary: list[Domain],
) -> str:
    """Return the paper's single-domain table: default, prompting, model editing.

    Args:
        binary: other domains, of two levels, whose better one has a column.
    """
    head = ["", "λ", "usable", *own.levels, "log-prob " + " / ".join(own.levels)]
    head += ["prompt tokens", "first token"] if prompting else []
    head += [f"{domain.name}: {next(iter(domain.levels))}" for domain in binary]
    rows = []

    def row(title: str, point: Point | None, result: Result, cost: Cost | None) -> None:
        value = point.lambdas[sweep.vector] if point else 0.0
        cells = [title, f"{value:g}", yes(sweep.usable(value) if point else None)]
        cells += [*(share(result, level) for level in result.accuracy), mean_log_probs(result)]
        if cost:
            cells += [f"{cost.prompt_tokens:.0f}", f"{cost.first_token * 1e3:.0f} ms"]
        for domain in binary:
            level = next(iter(domain.levels))
            cells.append(share(point.results[domain.name, "test"], level) if point else "")
        rows.append(cells)

    start = sweep.at(0.0)
    bare = prompting[None][1] if prompting else None
    row("default", start, start.results[own.name, "test"], bare)
    for level, (result, cost) in prompting.items():
        if level is not None:
            row(f"prompting, {level}", None, result, cost)
    for level, best in calibration.best.items():
        row(f"AV, {level}", sweep.at(best.value), best.test, bare)
        usable = calibration.best_usable.get(level, best)
        if usable.value != best.value:
            row(f"AV, {level}, usable λ", sweep.at(usable.value), usable.test, bare)
    says = (
        "Preference accuracy on test records with its 95 % interval, the dominant level in "
        "bold; each level at the λ that is best for it on the validation records, and where "
        "the language has broken down there, at the best usable λ as well."
    )
    if prompting:
        says += " λ changes weights, not prompts: its tokens and its time are those of the default."
    return says + "\n\n" + table(head, rows)


def _out_of_domain(sweep: Sweep, others: list[Domain]) -> str:
    """Return the paper's table 4: what the vector does to domains that it was not made for."""
    head = ["λ", "usable", *(f"{d.name} {' / '.join(d.levels)}" for d in others)]
    rows = []
    for value in _chosen(sweep):
        results = sweep.at(value).results
        cells = [shares(results[domain.name, "test"]) for domain in others]
        rows.append([f"{value:g}", yes(sweep.usable(value)), *cells])
    return table(head, rows)


def _specificity(sweep: Sweep) -> str:
    """Return what the vector moves in each domain, its own in bold, and how much of it elsewhere."""
    rows = []
    for domain, level, other in sweep.specificities[0].effects:
        effects = [found.effects[domain, level, other] for found in sweep.specificities]
        cells = [
            f"{effect.value:+.2f} ({effect.low:+.2f} … {effect.high:+.2f})" for effect in effects
        ]
        name = f"**{domain}**" if domain == sweep.domain else domain
        rows.append([name, f"{level} over {other}", *cells])
    spills = [found.spill for found in sweep.specificities]
    cells = [with_interval(found) if found else "" for found in spills]
    rows.append(["**spill**", "", *cells])
    says = (
        "Nats per token and unit of λ between the base and that λ, mean over the test records with "
        "its 95 % interval. *Spill* is the largest effect in another domain as a share of the largest in the "
        "vector's own: 0 for a vector that stays in its domain. Its interval is of records drawn anew."
    )
    head = ["domain", "", *(f"λ {found.value:g}" for found in sweep.specificities)]
    return says + "\n\n" + table(head, rows)


def _changes(sweep: Sweep, domains: list[Domain]) -> str:
    """Return how far the best level's share moves in each domain."""
    rows = []
    for domain in domains:
        level = next(iter(domain.levels))
        results = [point.results[domain.name, "test"] for point in sweep.points]
        values = [result.accuracy[level].value for result in results]
        low, high = min(values), max(values)
        at_base = values[sweep.lambdas.index(0.0)]
        span = f"{low:.2f} … {high:.2f}"
        rows.append([domain.name, level, f"{at_base:.2f}", span, f"{high - low:.2f}"])
    return table(["domain", "level", "at λ 0", "lowest … highest", "span"], rows)


def _every(sweep: Sweep, domains: list[Domain]) -> str:
    head = ["λ", "usable", "preferred log-prob", "repeated 4-grams", "not ended"]
    head += [f"{d.name} {' / '.join(d.levels)}" for d in domains]
    rows = []
    for value, point in zip(sweep.lambdas, sweep.points, strict=True):
        cells = [""] * 3
        if seen := point.fluency:
            cells = [f"{seen.held_out:.2f}", f"{seen.repeated:.2f}", f"{seen.unended:.2f}"]
        for domain in domains:
            result = point.results[domain.name, "test"]
            cells.append(f"{shares(result)} ({mean_log_probs(result)})")
        rows.append([f"{value:g}", yes(sweep.usable(value)), *cells])
    return table(head, rows)


def _answers(sweep: Sweep, decoding: str) -> list[str]:
    """Return each query with its answers at the chosen λ."""
    parts = [f"{decoding[0].upper()}{decoding[1:]}; … where an answer was cut before its end."]
    for id, query in sweep.queries.items():
        rows = [
            [f"{value:g}", yes(sweep.usable(value)), _answer(sweep.at(value).answers[id])]
            for value in _chosen(sweep)
        ]
        parts += [f"**{text(id)}**: {text(query)}", table(["λ", "usable", "answer"], rows)]
    return parts


def _answer(answer: Answer) -> str:
    words = text(answer.text) or "(nothing)"
    return words if answer.ended else words + " …"


def _chosen(sweep: Sweep) -> list[float]:
    """Return the λ worth a row of their own: 0, the best ones, the ends of the usable range."""
    if sweep.calibration is None:
        return sweep.lambdas
    values = {0.0, *(sweep.usable_range or ())}
    for bests in (sweep.calibration.best, sweep.calibration.best_usable):
        values.update(best.value for best in bests.values())
    return sorted(values)
