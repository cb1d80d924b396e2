"""The Markdown report of a search."""

from collections.abc import Sequence

from mergekit_av.evaluation.rendering import in_words, share, shares
from mergekit_av.text.markdown import facts, table

from .outcome import Outcome
from .result import SearchResult
from .summary import annotated_recipe

HEADING = "# Search for coefficients"


def search_markdown(found: SearchResult, figure: str) -> str:
    """Return the content of NAME.md.

    Args:
        figure: name of the figure's file, beside it.
    """
    parts = [HEADING, facts(in_words(found.provenance))]
    if found.interrupted:
        parts.append("**Interrupted: this is what was found until then.**")
    parts += [_overview(found), f"![Margins]({figure})", _outcomes(found)]
    if unmet := [outcome for outcome in found.outcomes if not outcome.met]:
        parts += ["## Not met", "\n".join(_obstacles(unmet))]
    if found.effects:
        parts += ["## What each vector moves", _effects(found)]
    if found.joint:
        parts += ["## Against joint training", _joint(found), _costs(found)]
    if len(found.outcomes) == 1:
        parts += ["## Recipe", f"```yaml\n{annotated_recipe(found, found.outcomes[0])}```"]
    return "\n\n".join(parts) + "\n"


def _overview(found: SearchResult) -> str:
    on_test = "; {} of these on the test records as well." if found.tested else "."
    return (
        f"{len(found.settings)} settings, {_minutes(found.seconds)} of measuring. "
        f"**{len(found.met)} of {len(found.outcomes)} met** on the validation records, which chose "
        f"the coefficients{on_test.format(found.holding)}\n\n"
        "Predicted by surfaces through all other settings, the mean log-probabilities of a "
        f"setting are off by {found.surface_error:.2f} nats per token (root mean square)."
    )


def _outcomes(found: SearchResult) -> str:
    vectors, domains = found.ingredients.vectors, found.outcomes[0].goal
    head = [*domains, "met", *(f"λ {name}" for name in vectors), "worst margin, validation"]
    head += [f"test {domain}" for domain in domains] + ["worst margin, test", "language"]
    says = (
        "Shares on test records in the order of the levels, the dominant one in bold; language "
        "as the share of what the fluency guard allows (1 is its limit); of a goal that is not "
        "met the nearest setting."
    )
    return says + "\n\n" + table(head, [_row(found, outcome) for outcome in found.outcomes])


def _row(found: SearchResult, outcome: Outcome) -> list[str]:
    cells = [*outcome.goal.values(), "yes" if outcome.met else "no"]
    cells += [f"{value:g}" for value in outcome.lambdas.values()]
    cells.append(f"{outcome.margin:+.2f}")
    if outcome.tests:
        cells += [shares(outcome.tests[domain]) for domain in outcome.goal]
        cells.append(f"{outcome.test_margin:+.2f}")
    else:
        cells += [""] * (len(outcome.goal) + 1)
    damage = found.damage(outcome)
    return [*cells, "" if damage is None else f"{damage:.2f}"]


def _obstacles(unmet: Sequence[Outcome]) -> list[str]:
    by_obstacle: dict[str, list[str]] = {}
    for outcome in unmet:
        for obstacle in outcome.obstacles:
            by_obstacle.setdefault(obstacle, []).append(", ".join(outcome.goal.values()))
    return [
        f"- {obstacle[0].upper()}{obstacle[1:]}: {'; '.join(goals)}."
        for obstacle, goals in by_obstacle.items()
    ]


def _effects(found: SearchResult) -> str:
    vectors = next(iter(found.effects.values()))
    rows = []
    for (domain, level, other), slopes in found.effects.items():
        values = {name: f"{slope:+.2f}" for name, slope in slopes.items()}
        cells = [f"**{value}**" if name == domain else value for name, value in values.items()]
        rows.append([domain, f"{level} over {other}", *cells])
    rows.append(
        ["**spill**", "", *("" if one is None else f"{one:.2f}" for one in found.spills.values())]
    )
    says = (
        "How fast λ moves one level over the next about the base, nats per token and unit of λ, "
        "mean over the validation records: the linear part of a quadratic fitted to the settings "
        "where the language holds. A vector's own domain is in bold; what it moves elsewhere is "
        "over-generalisation, and `av-train --hold` makes less of it. *Spill* is the largest effect in "
        "another domain as a share of the largest in the vector's own."
    )
    return says + "\n\n" + table(["domain", "", *(f"λ {name}" for name in vectors)], rows)


def _joint(found: SearchResult) -> str:
    rows = []
    for one in found.joint:
        ours = next((outcome for outcome in found.outcomes if outcome.goal == one.goal), None)
        tests = {"joint training, λ 1": one.tests, "sum of vectors": ours.tests if ours else {}}
        for title, results in tests.items():
            if results:
                cells = [share(results[domain], level) for domain, level in one.goal.items()]
                rows.append([", ".join(one.goal.values()), title, *cells])
    head = ["wanted", "", *(f"{domain}: wanted level" for domain in found.joint[0].goal)]
    return table(head, rows)


def _costs(found: SearchResult) -> str:
    """Return what searching and joint training cost, as far as it was measured."""
    goals = len(found.outcomes)
    text = f"Searching took {_minutes(found.seconds)} for {goals} goals"
    if found.training:
        trained = _minutes(sum(found.training.values()))
        text += f", training the vectors {trained} ({', '.join(found.training)})"
    known = [one.seconds for one in found.joint if one.seconds is not None]
    if not known:
        return f"{text}."
    mean = sum(known) / len(known)
    return (
        f"{text}. Joint training took {_minutes(mean)} for a goal; for {goals} goals that makes "
        f"{_minutes(goals * mean)}."
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes"
