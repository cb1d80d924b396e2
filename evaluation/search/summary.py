"""The summary of a search in plain text, for a terminal or as comments of a recipe."""

from mergekit_av.evaluation.rendering import accuracy_table, with_interval
from mergekit_av.text.tables import aligned

from .outcome import Outcome
from .recipe import recipe
from .result import SearchResult


def search_summary(found: SearchResult) -> str:
    """Return what there is to say on a terminal."""
    return _of_many(found) if len(found.outcomes) > 1 else _of_one(found, found.outcomes[0])


def annotated_recipe(found: SearchResult, outcome: Outcome) -> str:
    """Return an outcome as a recipe, with what was measured as comments."""
    return recipe(found.ingredients, outcome.lambdas, _comments(found, outcome))


def _of_one(found: SearchResult, outcome: Outcome) -> str:
    setting = " ".join(f"{name} {value:g}" for name, value in outcome.lambdas.items())
    met = "met" if outcome.met else "NOT met, the nearest is"
    lines = [f"{outcome.wanted}: {met} at {setting}"]
    lines += [f"  {obstacle}" for obstacle in outcome.obstacles]
    if outcome.tests:
        lines.append(accuracy_table(list(outcome.tests.values())))
    lines.append(f"{_margins(outcome)}; language: {_language(found, outcome)}")
    return "\n".join(lines)


def _of_many(found: SearchResult) -> str:
    rows = [["wanted", "λ " + " ".join(found.ingredients.vectors), "margin", "test", "language"]]
    for outcome in found.outcomes:
        cells = ["", "not met", "", ""]
        if outcome.met:
            damage = found.damage(outcome)
            cells = [
                " ".join(f"{value:g}" for value in outcome.lambdas.values()),
                f"{outcome.margin:+.2f}",
                f"{outcome.test_margin:+.2f}" if outcome.tests else "",
                "" if damage is None else f"{damage:.2f}",
            ]
        rows.append([outcome.wanted, *cells])
    text = f"{len(found.met)} of {len(found.outcomes)} met on the validation records"
    if found.tested:
        text += f", {found.holding} of these on the test records"
    return f"{aligned(rows)}\n{text}"


def _comments(found: SearchResult, outcome: Outcome) -> list[str]:
    lines = [f"wanted: {outcome.wanted}"]
    if found.interrupted:
        tried = f"{len(found.settings)} of up to {found.budget} settings"
        lines.append(f"INTERRUPTED after {tried}: the best so far")
    if not outcome.met:
        lines += ["NOT REACHED; the nearest of all settings tried. In the way:"]
        lines += [f"  {obstacle}" for obstacle in outcome.obstacles]
    elif outcome.tests and not outcome.holds:
        lines.append("reached on the validation records, NOT on the test records")
    for domain, result in outcome.tests.items():
        shown = ", ".join(
            f"{level} {with_interval(share)}" for level, share in result.accuracy.items()
        )
        lines.append(f"{domain}, {result.records} test records: {shown}")
    source = found.provenance
    return [
        *lines,
        _margins(outcome),
        f"language: {_language(found, outcome)}",
        f"{source['dtype']}, {source['device']}; {source['command']}",
    ]


def _margins(outcome: Outcome) -> str:
    text = f"worst margin: {outcome.margin:+.2f} of the validation records"
    return text + (f", {outcome.test_margin:+.2f} of the test records" if outcome.tests else "")


def _language(found: SearchResult, outcome: Outcome) -> str:
    by_split = {
        "validation": outcome.damage if found.guarded else None,
        "test": outcome.test_damage,
    }
    known = {split: damage for split, damage in by_split.items() if damage is not None}
    if not known:
        return "not looked at"
    state = "holds" if max(known.values()) <= 1 else "has broken down"
    used = " and ".join(f"{damage:.2f} ({split} queries)" for split, damage in known.items())
    return f"{state}, {used} of what the fluency guard allows"
