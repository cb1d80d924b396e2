"""A sweep as files: tidy CSV, JSON, figure, and a Markdown report in the form of the paper's tables."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mergekit_av.domains import Domain
from mergekit_av.files import write_whole

from .accuracy import Result, as_json
from .calibration import Calibration
from .fluency import usable_range
from .plot import plot_sweep
from .prompting import Cost
from .sweep import Point


@dataclass
class Sweep:
    """The sweep of one vector.

    Attributes:
        vector: its name.
        domain: its own domain; None where it is in none of those scored.
        points: measured so far, by rising λ.
        calibration: None without a domain of its own.
    """

    vector: str
    domain: str | None
    points: list[Point]
    calibration: Calibration | None = None

    def at(self, value: float) -> Point:
        return next(point for point in self.points if point.lambdas[self.vector] == value)

    @property
    def usable_range(self) -> tuple[float, float] | None:
        """The span of λ in which the fluency guard holds; None where it was not measured."""
        measured = {point.lambdas[self.vector]: point.fluency for point in self.points}
        return usable_range({value: seen for value, seen in measured.items() if seen is not None})

    def usable(self, value: float) -> bool | None:
        """Whether λ lies in the usable range; None where it was not measured."""
        if self.usable_range is None:
            return None
        low, high = self.usable_range
        return low <= value <= high


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
    sweeps: list[Sweep]
    prompting: dict[str, dict[str | None, tuple[Result, Cost]]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """sweep.csv, sweep.json, report.md and a figure (PNG and SVG) in the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "sweep.csv", self._csv())
        write_whole(folder / "sweep.json", json.dumps(self._json(), indent=2, allow_nan=False))
        for suffix in ("png", "svg"):
            plot_sweep(self.sweeps, self.domains, folder / f"sweep.{suffix}")
        write_whole(folder / "report.md", self._markdown())

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["vector", "lambda", "usable", "prompt", "domain", "split", "records", "level",
             "accuracy", "accuracy_low", "accuracy_high",
             "mean_log_prob", "mean_log_prob_low", "mean_log_prob_high"]
        )  # fmt: skip

        def rows(result: Result, *start: Any) -> None:
            for level, share in result.accuracy.items():
                mean = result.mean_log_prob[level]
                writer.writerow(
                    [*start, result.domain, result.split, result.records, level,
                     share.value, share.low, share.high, mean.value, mean.low, mean.high]
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
        return text.getvalue()

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
        parts = ["# λ sweep", _facts(self.source), "![Preference accuracy against λ](sweep.png)"]
        for sweep in self.sweeps:
            parts += [f"## {sweep.vector}", *self._one(sweep)]
        return "\n\n".join(parts) + "\n"

    def _one(self, sweep: Sweep) -> list[str]:
        parts = [_range(sweep.usable_range)]
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
            parts += ["### Answers", self._answers(sweep)]
        return parts

    def _in_domain(self, sweep: Sweep, own: Domain, ability: list[Domain]) -> str:
        """The paper's single-domain table: default, prompting, model editing."""
        head = ["", "λ", *own.levels, "log-prob " + " / ".join(own.levels), "prompt tokens"]
        head += ["first token"] + [f"{d.name}: {next(iter(d.levels))}" for d in ability]
        prompting = self.prompting.get(own.name, {})
        rows = []

        def row(title: str, value: float, result: Result, cost: Cost | None, point: Point | None):
            cells = [title, f"{value:g}", *_shares(result), _means(result)]
            cells += (
                [f"{cost.prompt_tokens:.0f}", f"{cost.first_token * 1e3:.0f} ms"]
                if cost
                else ["", ""]
            )
            for domain in ability:
                other = point and point.results.get((domain.name, "test"))
                cells.append(_share(other, next(iter(domain.levels))) if other else "")
            rows.append(cells)

        bare = prompting.get(None)
        cost = bare[1] if bare else None
        start = sweep.at(0.0)
        row("default", 0, start.results[own.name, "test"], cost, start)
        for level, (result, words) in prompting.items():
            if level is not None:
                row(f"prompting, {level}", 0, result, words, None)
        kinds = [("", sweep.calibration.best), (", usable λ", sweep.calibration.best_usable)]
        for suffix, bests in kinds:
            for level, best in bests.items():
                row(f"AV, {level}{suffix}", best.value, best.test, cost, sweep.at(best.value))
        return _table(head, rows)

    def _out_of_domain(self, sweep: Sweep, others: list[Domain]) -> str:
        """The paper's table 4: what the vector does to domains that it was not made for."""
        head = ["λ", "usable", *(f"{d.name} {' / '.join(d.levels)}" for d in others)]
        rows = []
        for value in _chosen(sweep):
            point = sweep.at(value)
            cells = [" / ".join(_shares(point.results[d.name, "test"], False)) for d in others]
            rows.append([f"{value:g}", _yes(sweep.usable(value)), *cells])
        return _table(head, rows)

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
        return _table(["domain", "level", "at λ 0", "lowest … highest", "span"], rows)

    def _every(self, sweep: Sweep) -> str:
        head = ["λ", "usable", "answers' log-prob", "repeated 4-grams", "not ended"]
        head += [f"{d.name} {' / '.join(d.levels)}" for d in self.domains]
        rows = []
        for point in sweep.points:
            value, seen = point.lambdas[sweep.vector], point.fluency
            cells = (
                [f"{seen.log_prob:.2f}", f"{seen.repeated:.2f}", f"{seen.unended:.2f}"]
                if seen
                else [""] * 3
            )
            for domain in self.domains:
                result = point.results[domain.name, "test"]
                cells.append(" / ".join(_shares(result, False)) + f" ({_means(result)})")
            rows.append([f"{value:g}", _yes(sweep.usable(value)), *cells])
        return _table(head, rows)

    def _answers(self, sweep: Sweep) -> str:
        """The same queries' answers side by side."""
        lambdas = _chosen(sweep)
        head = ["record", *(f"λ = {value:g}" for value in lambdas)]
        rows = [
            [id, *(" ".join(sweep.at(value).answers[id].text.split()) for value in lambdas)]
            for id in sweep.at(0.0).answers
        ]
        return "Greedy, cut where they have not ended.\n\n" + _table(head, rows)


def _chosen(sweep: Sweep) -> list[float]:
    """The λ worth a row of their own: 0, the best ones, the ends of the usable range."""
    values = {0.0}
    if sweep.calibration is None:
        return [point.lambdas[sweep.vector] for point in sweep.points]
    for bests in (sweep.calibration.best, sweep.calibration.best_usable):
        values.update(best.value for best in bests.values())
    values.update(sweep.usable_range or ())
    return sorted(values)


def _range(usable: tuple[float, float] | None) -> str:
    if usable is None:
        return "Usable range: not measured (`--generate 0`)."
    low, high = usable
    return (
        f"**Usable range: λ from {low:g} to {high:g}.** Outside it the answers are no longer "
        "language: less probable under the base, or more repetitive, than its own answers by more "
        "than the guard allows (`mergekit_av.evaluation.fluency`)."
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


def _facts(source: Mapping[str, Any]) -> str:
    rows = []
    for key, value in source.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {inner}" for name, inner in value.items())
        rows.append([key, str(value)])
    return _table(["", ""], rows)


def _shares(result: Result, interval: bool = True) -> list[str]:
    return [_share(result, level, interval) for level in result.accuracy]


def _share(result: Result, level: str, interval: bool = True) -> str:
    share = result.accuracy[level]
    text = f"{share.value:.2f}"
    if level == result.dominant:
        text = f"**{text}**"
    return f"{text} ({share.low:.2f}–{share.high:.2f})" if interval else text


def _means(result: Result) -> str:
    return " / ".join(f"{mean.value:.2f}" for mean in result.mean_log_prob.values())


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: ""}[value]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])
