"""A sweep as files: tidy CSV, JSON, figure, and a Markdown report in the form of the paper's tables."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mergekit_av.data.domain import Domain
from mergekit_av.evaluation.accuracy import Result, as_json
from mergekit_av.evaluation.formatting import facts, share, shares, yes
from mergekit_av.io.atomic import write_whole
from mergekit_av.models.generation import Answer
from mergekit_av.text.markdown import table, text

from .plot import plot_sweep
from .prompting import Cost
from .result import Sweep
from .sweep import Point

REPORT, HEADING = "report.md", "# λ sweep"


@dataclass
class Report:
    """All that `av-sweep` found.

    Attributes:
        source: base, vectors, dtype, device, machine, versions and the like.
        domains: those scored.
        sweeps: one a vector.
        prompting: domain → level → the base's result when asked for the level in words, and what
            the asking costs; the key None is the bare query.
    """

    source: dict[str, Any]
    domains: list[Domain]
    sweeps: list[Sweep] = field(default_factory=list)
    prompting: dict[str, dict[str | None, tuple[Result, Cost]]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """sweep.csv, sweep.json, report.md and a figure (PNG and SVG) in the folder.

        Raises:
            AVError: matplotlib is not installed, or a file cannot be written.
        """
        write_whole(folder / "sweep.csv", self._csv())
        write_whole(folder / "sweep.json", json.dumps(self._json(), indent=2, allow_nan=False))
        for suffix in ("png", "svg"):
            plot_sweep(self.sweeps, self.domains, folder / f"sweep.{suffix}")
        write_whole(folder / REPORT, self._markdown())

    def _csv(self) -> str:
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(
            ["vector", "lambda", "usable", "prompt", "domain", "split", "records", "level",
             "accuracy", "accuracy_low", "accuracy_high",
             "mean_log_prob", "mean_log_prob_low", "mean_log_prob_high"]
        )  # fmt: skip

        def rows(result: Result, *start: Any) -> None:
            for level, found in result.accuracy.items():
                mean = result.mean_log_prob[level]
                writer.writerow(
                    [*start, result.domain, result.split, result.records, level,
                     found.value, found.low, found.high,
                     mean.value, *(end if math.isfinite(end) else None for end in (mean.low, mean.high))]
                )  # fmt: skip

        for sweep in self.sweeps:
            for point in sweep.points:
                value = point.lambdas[sweep.vector]
                for result in point.results.values():
                    rows(result, sweep.vector, value, sweep.usable(value), None)
        for results in self.prompting.values():
            for level, (result, _) in results.items():
                if level is not None:
                    rows(result, None, 0, None, level)
        return lines.getvalue()

    def _json(self) -> dict[str, Any]:
        return {
            **self.source,
            "sweeps": [
                {
                    "vector": sweep.vector,
                    "domain": sweep.domain,
                    "usable_range": sweep.usable_range,
                    "best": sweep.calibration and _bests(sweep.calibration.best),
                    "best_usable": sweep.calibration and _bests(sweep.calibration.best_usable),
                    "queries": sweep.queries,
                    "points": [
                        {
                            "lambda": point.lambdas[sweep.vector],
                            "results": [as_json(result) for result in point.results.values()],
                            "fluency": point.fluency and asdict(point.fluency),
                            "answers": {id: asdict(a) for id, a in point.answers.items()},
                        }
                        for point in sweep.points
                    ],
                }
                for sweep in self.sweeps
            ],
            "prompting": [
                {"prompt": level, "cost": asdict(cost), "result": as_json(result)}
                for results in self.prompting.values()
                for level, (result, cost) in results.items()
            ],
        }

    def _markdown(self) -> str:
        parts = [HEADING, facts(self.source), "![Preference accuracy against λ](sweep.png)"]
        for sweep in self.sweeps:
            parts += [f"## {sweep.vector}", *self._one(sweep)]
        return "\n\n".join(parts) + "\n"

    def _one(self, sweep: Sweep) -> list[str]:
        parts = [_range(sweep)]
        others = [domain for domain in self.domains if domain.name != sweep.domain]
        if sweep.calibration is not None:
            own = next(domain for domain in self.domains if domain.name == sweep.domain)
            parts += [
                "### In its own domain",
                self._in_domain(sweep, own, [d for d in others if len(d.levels) == 2]),
            ]
        if others:
            parts += ["### In other domains", self._out_of_domain(sweep, others)]
        parts += ["### Change over the sweep", self._changes(sweep)]
        parts += ["### Every λ", self._every(sweep)]
        if any(point.answers for point in sweep.points):
            parts += ["### Answers", *self._answers(sweep)]
        return parts

    def _in_domain(self, sweep: Sweep, own: Domain, ability: list[Domain]) -> str:
        """The paper's single-domain table: default, prompting, model editing."""
        prompting = self.prompting.get(own.name, {})
        head = ["", "λ", "usable", *own.levels, "log-prob " + " / ".join(own.levels)]
        head += ["prompt tokens", "first token"] if prompting else []
        head += [f"{domain.name}: {next(iter(domain.levels))}" for domain in ability]
        rows = []

        def row(title: str, point: Point | None, result: Result, cost: Cost | None):
            value = point.lambdas[sweep.vector] if point else 0.0
            cells = [title, f"{value:g}", yes(sweep.usable(value) if point else None)]
            cells += [*shares(result), _means(result)]
            if cost:
                cells += [f"{cost.prompt_tokens:.0f}", f"{cost.first_token * 1e3:.0f} ms"]
            for domain in ability:
                level = next(iter(domain.levels))
                cells.append(share(point.results[domain.name, "test"], level) if point else "")
            rows.append(cells)

        start = sweep.at(0.0)
        bare = prompting[None][1] if prompting else None
        row("default", start, start.results[own.name, "test"], bare)
        for level, (result, cost) in prompting.items():
            if level is not None:
                row(f"prompting, {level}", None, result, cost)
        for level, best in sweep.calibration.best.items():
            row(f"AV, {level}", sweep.at(best.value), best.test, bare)
            usable = sweep.calibration.best_usable.get(level, best)
            if usable.value != best.value:
                row(f"AV, {level}, usable λ", sweep.at(usable.value), usable.test, bare)
        says = (
            "Preference accuracy on test records with its 95 % interval, the dominant level in "
            "bold; each level at the λ that is best for it on the validation records, and where "
            "the language has broken down there, at the best usable λ as well."
        )
        if prompting:
            says += (
                " λ changes weights, not prompts: its tokens and its time are those of the default."
            )
        return says + "\n\n" + table(head, rows)

    def _out_of_domain(self, sweep: Sweep, others: list[Domain]) -> str:
        """The paper's table 4: what the vector does to domains that it was not made for."""
        head = ["λ", "usable", *(f"{d.name} {' / '.join(d.levels)}" for d in others)]
        rows = []
        for value in _chosen(sweep):
            point = sweep.at(value)
            cells = [" / ".join(shares(point.results[d.name, "test"], False)) for d in others]
            rows.append([f"{value:g}", yes(sweep.usable(value)), *cells])
        return table(head, rows)

    def _changes(self, sweep: Sweep) -> str:
        """How far the best level's share moves in each domain: in the vector's own, and elsewhere."""
        rows = []
        for domain in self.domains:
            level = next(iter(domain.levels))
            shares = {
                point.lambdas[sweep.vector]: point.results[domain.name, "test"]
                .accuracy[level]
                .value
                for point in sweep.points
            }
            low, high = min(shares.values()), max(shares.values())
            rows.append(
                [
                    domain.name,
                    level,
                    f"{shares[0.0]:.2f}",
                    f"{low:.2f} … {high:.2f}",
                    f"{high - low:.2f}",
                ]
            )
        return table(["domain", "level", "at λ 0", "lowest … highest", "span"], rows)

    def _every(self, sweep: Sweep) -> str:
        head = ["λ", "usable", "preferred log-prob", "repeated 4-grams", "not ended"]
        head += [f"{d.name} {' / '.join(d.levels)}" for d in self.domains]
        rows = []
        for point in sweep.points:
            value, seen = point.lambdas[sweep.vector], point.fluency
            cells = (
                [f"{seen.held_out:.2f}", f"{seen.repeated:.2f}", f"{seen.unended:.2f}"]
                if seen
                else [""] * 3
            )
            for domain in self.domains:
                result = point.results[domain.name, "test"]
                cells.append(" / ".join(shares(result, False)) + f" ({_means(result)})")
            rows.append([f"{value:g}", yes(sweep.usable(value)), *cells])
        return table(head, rows)

    def _answers(self, sweep: Sweep) -> list[str]:
        """Each query with its answers at the chosen λ."""
        decoding = str(self.source["decoding"])
        parts = [f"{decoding[0].upper()}{decoding[1:]}; … where an answer was cut before its end."]
        for id, query in sweep.queries.items():
            rows = [
                [f"{value:g}", yes(sweep.usable(value)), _answer(sweep.at(value).answers[id])]
                for value in _chosen(sweep)
            ]
            parts += [
                f"**{text(id)}**: {text(query)}",
                table(["λ", "usable", "answer"], rows),
            ]
        return parts


def _chosen(sweep: Sweep) -> list[float]:
    """The λ worth a row of their own: 0, the best ones, the ends of the usable range."""
    values = {0.0}
    if sweep.calibration is None:
        return [point.lambdas[sweep.vector] for point in sweep.points]
    for bests in (sweep.calibration.best, sweep.calibration.best_usable):
        values.update(best.value for best in bests.values())
    values.update(sweep.usable_range or ())
    return sorted(values)


def _range(sweep: Sweep) -> str:
    if sweep.usable_range is None:
        return "Usable range: not measured (`--generate 0`)."
    low, high = sweep.usable_range
    says = f"**Usable range: λ from {low:g} to {high:g}.** "
    first, last = (sweep.points[i].lambdas[sweep.vector] for i in (0, -1))
    if (low, high) == (first, last):
        return says + "The language held at every λ of the sweep."
    return says + (
        "Beyond it this is no longer language: the responses that it prefers are less probable to "
        "it, or its answers more repetitive or more often without an end, than with the base, by "
        "more than the guard allows (`mergekit_av.evaluation.fluency`)."
    )


def _bests(bests: Mapping[str, Any]) -> dict[str, Any]:
    return {
        level: {
            "lambda": best.value,
            "validation": best.validation,
            "test": asdict(best.test.accuracy[level]),
            "dominant": best.dominant,
        }
        for level, best in bests.items()
    }


def _means(result: Result) -> str:
    return " / ".join(f"{mean.value:.2f}" for mean in result.mean_log_prob.values())


def _answer(answer: Answer) -> str:
    words = text(answer.text) or "(nothing)"
    return words if answer.ended else words + " …"
