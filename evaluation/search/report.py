"""What a search found, as files: recipes, JSON, a Markdown report, a figure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mergekit_av.evaluation.accuracy import Result, as_json
from mergekit_av.evaluation.accuracy import table as accuracy_table
from mergekit_av.evaluation.formatting import facts, share, shares
from mergekit_av.evaluation.measure.cache import Evaluator
from mergekit_av.io.atomic import write_whole
from mergekit_av.text.markdown import table
from mergekit_av.text.tables import aligned
from mergekit_av.vectors.vector import AlignmentVector

from .effects import effects
from .outcome import Outcome, count, outcome, tested
from .plot import plot_goals, plot_slices
from .problem import Goal
from .recipe import Ingredients, recipe
from .search import Records, Search
from .surfaces import Surfaces

HEADING = "# Search for coefficients"


@dataclass(frozen=True)
class Joint:
    """A model that was trained for one goal, to compare with.

    Attributes:
        goal: what it was trained for.
        tests: domain → what was measured on the test records, at λ 1.
        seconds: its training; None where its metadata does not say.
    """

    goal: dict[str, str]
    tests: dict[str, Result]
    seconds: float | None


@dataclass
class SearchReport:
    """All that `av-search` found.

    Attributes:
        source: base, vectors, dtype, strategy, machine, versions and the like.
        outcomes: one a goal.
        training: vector → seconds that its training took, where its metadata says.
        joint: models to compare with.
        interrupted: the search was stopped before its end.
    """

    source: dict[str, Any]
    ingredients: Ingredients
    search: Search
    outcomes: list[Outcome] = field(default_factory=list)
    training: dict[str, float] = field(default_factory=dict)
    joint: list[Joint] = field(default_factory=list)
    interrupted: bool = False

    def conclude(self, goals: Sequence[Goal]) -> None:
        """Take the best that the search has seen for each goal."""
        self.outcomes = [outcome(self.search, goal) for goal in goals]

    def test(self, evaluator: Evaluator, records: Records) -> None:
        """Measure on the test records what meets a goal; a single goal's nearest as well."""
        due = [n for n, found in enumerate(self.outcomes) if found.met or len(self.outcomes) == 1]
        settings = [self.outcomes[number].lambdas for number in due]
        if records.written and due:
            settings.append({})  # the base, which the guard compares with
        once = {tuple(lambdas.items()): lambdas for lambdas in settings}.values()
        jobs = [job for lambdas in once for job in records.jobs(lambdas)]
        held = sum(map(evaluator.holds, jobs))
        with tqdm(total=len(jobs), initial=held, desc="Testing", unit="evaluation") as bar:
            for _ in evaluator.measure(jobs):
                bar.update()
        for number in due:
            self.outcomes[number] = tested(self.outcomes[number], evaluator, records)

    def compare(
        self, rivals: Mapping[str, AlignmentVector], evaluator: Evaluator, records: Records
    ) -> None:
        """Measure on the test records what joint training gave."""
        for name, vector in rivals.items():
            training = vector.metadata.training or {}
            tests = {task.name: evaluator.result({name: 1.0}, task) for task in records.scored}
            self.joint.append(Joint(training["joint"], tests, training.get("seconds")))

    def write(self, folder: Path, name: str) -> None:
        """NAME.json, NAME.md and a figure (PNG and SVG) in the folder.

        Raises:
            AVError: matplotlib is not installed, or a file cannot be written.
        """
        write_whole(folder / f"{name}.json", json.dumps(self._json(), indent=2, allow_nan=False))
        for suffix in ("png", "svg"):
            figure = folder / f"{name}.{suffix}"
            if len(self.outcomes) == 1:
                plot_slices(self.search, self.outcomes[0], figure)
            else:
                plot_goals(self.outcomes, figure)
        write_whole(folder / f"{name}.md", self._markdown(f"{name}.png"))

    def recipe(self, found: Outcome) -> str:
        """An outcome as a recipe, with what was measured as comments."""
        return recipe(self.ingredients, found.lambdas, self._comments(found))

    def summary(self) -> str:
        """What there is to say on a terminal."""
        if len(self.outcomes) > 1:
            return self._summary_of_many()
        [found] = self.outcomes
        setting = " ".join(f"{name} {value:g}" for name, value in found.lambdas.items())
        met = "met" if found.met else "NOT met, the nearest is"
        lines = [f"{wanted_levels(found)}: {met} at {setting}"]
        lines += [f"  {obstacle}" for obstacle in found.obstacles]
        if found.tests:
            lines.append(accuracy_table(list(found.tests.values())))
        lines.append(f"{self._margins(found)}; language: {self._language(found)}")
        return "\n".join(lines)

    def _summary_of_many(self) -> str:
        rows = [("wanted", "λ " + " ".join(self.ingredients.vectors), "margin", "test", "language")]
        for found in self.outcomes:
            cells = ["", "not met", "", ""]
            if found.met:
                cells = [
                    " ".join(f"{value:g}" for value in found.lambdas.values()),
                    f"{found.margin:+.2f}",
                    f"{found.test_margin:+.2f}" if found.tests else "",
                    self._damage(found),
                ]
            rows.append((wanted_levels(found), *cells))
        met, holds = count(self.outcomes)
        text = f"{met} of {len(self.outcomes)} met on the validation records"
        if self._tested:
            text += f", {holds} of these on the test records"
        return f"{aligned(rows)}\n{text}"

    def _margins(self, found: Outcome) -> str:
        text = f"worst margin: {found.margin:+.2f} of the validation records"
        return text + (f", {found.test_margin:+.2f} of the test records" if found.tests else "")

    def _comments(self, found: Outcome) -> list[str]:
        tried = len(self.search.settings)
        lines = [f"wanted: {wanted_levels(found)}"]
        if self.interrupted:
            lines.append(
                f"INTERRUPTED after {tried} of up to {self.search.budget} settings: the best so far"
            )
        if not found.met:
            lines += ["NOT REACHED; the nearest of all settings tried. In the way:"]
            lines += [f"  {obstacle}" for obstacle in found.obstacles]
        elif found.tests and not found.holds:
            lines.append("reached on the validation records, NOT on the test records")
        for domain, result in found.tests.items():
            shown = ", ".join(
                f"{level} {share(result, level, bold=False)}" for level in result.accuracy
            )
            lines.append(f"{domain}, {result.records} test records: {shown}")
        lines.append(self._margins(found))
        lines.append(f"language: {self._language(found)}")
        lines.append(f"{self.source['dtype']}, {self.source['device']}; {self.source['command']}")
        return lines

    def _language(self, found: Outcome) -> str:
        guarded = bool(self.search.records.written)
        seen = {"validation": found.damage if guarded else None, "test": found.test_damage}
        known = {split: damage for split, damage in seen.items() if damage is not None}
        if not known:
            return "not looked at"
        state = "holds" if max(known.values()) <= 1 else "has broken down"
        used = " and ".join(f"{damage:.2f} ({split} queries)" for split, damage in known.items())
        return f"{state}, {used} of what the fluency guard allows"

    def _damage(self, found: Outcome) -> str:
        """By the validation queries where they limited the search, else by the test queries."""
        damage = found.damage if self.search.records.written else found.test_damage
        return "" if damage is None else f"{damage:.2f}"

    def _json(self) -> dict[str, Any]:
        question, seen = self.search.question, self.search.settings
        landscape = self.search.seen()
        return {
            **self.source,
            "interrupted": self.interrupted,
            "budget": self.search.budget,
            "seconds": self.search.seconds,
            "surface_error": self._surface_error,
            "training_seconds": self.training,
            "outcomes": [_outcome(found) for found in self.outcomes],
            "effects": [
                {"domain": domain, "level": level, "over": other, "slopes": slopes}
                for (domain, level, other), slopes in self._effects.items()
            ],
            "joint": [
                {"goal": one.goal, "seconds": one.seconds, "tests": _tests(one.tests)}
                for one in self.joint
            ],
            "settings": [
                {
                    "lambdas": question.setting(setting.point),
                    "damage": setting.damage,
                    "margins": {
                        f"{domain} {level}": float(values[number])
                        for (domain, level), values in landscape.margins.items()
                    },
                    "mean_log_prob": {
                        domain: dict(
                            zip(question.levels[domain], scores.mean(axis=0).tolist(), strict=True)
                        )
                        for domain, scores in setting.scores.items()
                    },
                }
                for number, setting in enumerate(seen)
            ],
        }

    def _markdown(self, figure: str) -> str:
        met, holds = count(self.outcomes)
        parts = [HEADING, facts(self.source)]
        if self.interrupted:
            parts.append("**Interrupted: this is what was found until then.**")
        parts.append(
            f"{len(self.search.settings)} settings, {self.search.seconds / 60:.1f} minutes of "
            f"measuring. **{met} of {len(self.outcomes)} met** on the validation records, which "
            f"chose the coefficients"
            + (f"; {holds} of these on the test records as well." if self._tested else ".")
        )
        parts.append(
            "Predicted by surfaces through all other settings, the mean log-probabilities of a "
            f"setting are off by {self._surface_error:.2f} nats per token (root mean square)."
        )
        parts += [f"![Margins]({figure})", self._table()]
        if unmet := [found for found in self.outcomes if not found.met]:
            parts += ["## Not met", "\n".join(self._unmet(unmet))]
        if self._effects:
            parts += ["## What each vector moves", self._moved()]
        if self.joint:
            parts += ["## Against joint training", self._joint()]
        if len(self.outcomes) == 1:
            parts += ["## Recipe", f"```yaml\n{self.recipe(self.outcomes[0])}```"]
        return "\n\n".join(parts) + "\n"

    @cached_property
    def _surface_error(self) -> float:
        return Surfaces(self.search.question, self.search.settings).error()

    @cached_property
    def _effects(self) -> dict[tuple[str, str, str], dict[str, float]]:
        return effects(self.search.question, self.search.settings)

    @property
    def _tested(self) -> bool:
        return any(found.tests for found in self.outcomes)

    def _table(self) -> str:
        vectors, domains = self.ingredients.vectors, self.outcomes[0].goal
        head = [*domains, "met", *(f"λ {name}" for name in vectors), "worst margin, validation"]
        head += [f"test {domain}" for domain in domains] + ["worst margin, test", "language"]
        rows = []
        for found in self.outcomes:
            cells = [*found.goal.values(), "yes" if found.met else "no"]
            cells += [f"{value:g}" for value in found.lambdas.values()]
            cells.append(f"{found.margin:+.2f}")
            cells += [
                " / ".join(shares(found.tests[domain], False)) if found.tests else ""
                for domain in domains
            ]
            cells.append(f"{found.test_margin:+.2f}" if found.tests else "")
            rows.append([*cells, self._damage(found)])
        says = (
            "Shares on test records in the order of the levels, the dominant one in bold; language "
            "as the share of what the fluency guard allows (1 is its limit); of a goal that is not "
            "met the nearest setting."
        )
        return says + "\n\n" + table(head, rows)

    def _unmet(self, unmet: Sequence[Outcome]) -> list[str]:
        by_reason: dict[str, list[str]] = {}
        for found in unmet:
            for obstacle in found.obstacles:
                by_reason.setdefault(obstacle, []).append(", ".join(found.goal.values()))
        return [
            f"- {reason[0].upper()}{reason[1:]}: {'; '.join(goals)}."
            for reason, goals in by_reason.items()
        ]

    def _moved(self) -> str:
        vectors = list(next(iter(self._effects.values())))
        rows = []
        for (domain, level, other), slopes in self._effects.items():
            cells = [
                f"**{s:+.2f}**" if name == domain else f"{s:+.2f}" for name, s in slopes.items()
            ]
            rows.append([domain, f"{level} over {other}", *cells])
        says = (
            "How fast λ moves one level over the next about the base, nats per token and unit of λ, "
            "mean over the validation records: the linear part of a quadratic fitted to the settings "
            "where the language holds. A vector's own domain is in bold; what it moves elsewhere is "
            "over-generalisation, and `av-train --hold` makes less of it."
        )
        return says + "\n\n" + table(["domain", "", *(f"λ {name}" for name in vectors)], rows)

    def _joint(self) -> str:
        rows = []
        for one in self.joint:
            ours = next((found for found in self.outcomes if found.goal == one.goal), None)
            tests = {"joint training, λ 1": one.tests, "sum of vectors": ours.tests if ours else {}}
            for title, results in tests.items():
                if results:
                    cells = [share(results[domain], level) for domain, level in one.goal.items()]
                    rows.append([", ".join(one.goal.values()), title, *cells])
        head = ["wanted", "", *(f"{domain}: wanted level" for domain in self.joint[0].goal)]
        return table(head, rows) + "\n\n" + self._cost()

    def _cost(self) -> str:
        """What the two ways cost, as far as it was measured."""
        known = [one.seconds for one in self.joint if one.seconds is not None]
        lines = [
            f"Searching took {_minutes(self.search.seconds)} for {len(self.outcomes)} goals"
            + (
                f", training the vectors {_minutes(sum(self.training.values()))} "
                f"({', '.join(self.training)})"
                if self.training
                else ""
            )
            + "."
        ]
        if known:
            lines.append(
                f"Joint training took {_minutes(sum(known) / len(known))} for a goal; for "
                f"{len(self.outcomes)} goals that makes "
                f"{_minutes(len(self.outcomes) * sum(known) / len(known))}."
            )
        return " ".join(lines)


def wanted_levels(found: Outcome) -> str:
    """The goal, as it is typed."""
    return " ".join(f"{domain}={level}" for domain, level in found.goal.items())


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes"


def _outcome(found: Outcome) -> dict[str, Any]:
    return {
        **{key: value for key, value in vars(found).items() if key != "tests"},
        "holds": found.holds if found.tests else None,
        "test_margin": found.test_margin if found.tests else None,
        "tests": _tests(found.tests),
    }


def _tests(results: Mapping[str, Result]) -> dict[str, Any]:
    return {domain: as_json(result) for domain, result in results.items()}
