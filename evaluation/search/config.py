"""The configuration of a search."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergekit_av.data.domain import Domain, built_in_domains, load_domain
from mergekit_av.errors import AVError, UsageError
from mergekit_av.evaluation.inputs import InputConfig, load_domains
from mergekit_av.io.atomic import check_file
from mergekit_av.io.temporary import check_writable

from .problem import Number, axis

# With `every` the folder of the recipes, in `out`.
RECIPES = "recipes"


@dataclass(frozen=True, kw_only=True)
class SearchConfig(InputConfig):
    """Configure `run_search`.

    Attributes:
        want: domain → the level that is to be dominant there.
        every: look for every combination of levels instead.
        out: the recipe to write (.yml); with `every` the folder for the report and the recipes.
        overwrite: whether a recipe that is there is replaced.
        runs: folder of the evaluations and the report; by default `searches`, with `every` `out`.
        span: lowest and highest λ of a vector that has no range of its own.
        ranges: vector → lowest and highest λ.
        step: λ is a multiple of this.
        strategy: a name in `STRATEGIES`.
        budget: settings to measure at most; by default twice what the strategy needs to say
            anything, three times with `every`; of a grid all.
        tolerance: how much of what the fluency guard allows may be used; where it is infinite, that
            is only reported.
        joint: vectors that `av-train --joint` trained for a combination, to compare with.
        workers: processes that measure side by side.
    """

    out: Path
    want: Mapping[str, str] = field(default_factory=dict)
    every: bool = False
    generate: int = 4
    dtype: str = "auto"
    span: tuple[Number, Number] = (-2, 2)
    ranges: Mapping[str, tuple[Number, Number]] = field(default_factory=dict)
    step: Number = "0.1"
    strategy: str = "surface"
    budget: int | None = None
    tolerance: float = 1.0
    joint: Sequence[str] = ()
    workers: int = 1
    runs: Path | None = None
    overwrite: bool = False

    @property
    def folder(self) -> Path:
        """Where the evaluations and the report are."""
        return self.runs or (self.out if self.every else Path("searches"))

    @property
    def name(self) -> str:
        """The report's name, without an ending."""
        return "combinations" if self.every else self.out.stem

    def files(self) -> str:
        """Return in one line where recipe and report are."""
        recipe = f"Recipes: {self.out / RECIPES}" if self.every else f"Recipe: {self.out}"
        return f"{recipe}   Report: {self.folder / self.name}.md"

    def check_out(self) -> None:
        """Raise AVError, before anything is measured, where the results could not be written."""
        if self.every:
            check_writable(self.out)
        elif self.out.suffix not in (".yml", ".yaml"):
            raise UsageError(f"--out must be a recipe, such as {self.out}.yml")
        else:
            check_file(self.out, self.overwrite)

    def load_domains(self, vectors: Collection[str]) -> list[Domain]:
        """Load all domains to score: those of the goal first, then those named, then the vectors' own.

        Raises:
            UsageError: neither a goal nor every combination is asked for, or both are.
            AVError: there is no such domain or level.
        """
        if self.every == bool(self.want):
            raise UsageError("say what is wanted: --want DOMAIN=LEVEL for each domain, or --all")
        if self.every:
            return load_domains(self.domains, vectors)
        described = {domain.name: domain for domain in map(load_domain, self.domains)}
        wanted = {}
        for name, level in self.want.items():
            wanted[name] = domain = described.get(name) or load_domain(name)
            if level not in domain.levels:
                raise AVError(
                    f"{name} has no level {level!r}: there are {', '.join(domain.levels)}"
                )
        own = {name: load_domain(name) for name in vectors if name in built_in_domains()}
        return list({**wanted, **described, **own}.values())

    def axes(self, vectors: Collection[str]) -> dict[str, tuple[float, ...]]:
        """Return vector → the λ it may have, rising.

        Raises:
            UsageError: a range is of no vector, or holds no multiple of the step or too many.
        """
        for name in self.ranges:
            if name not in vectors:
                raise UsageError(
                    f"--range names {name!r}, and the vectors are {', '.join(vectors)}"
                )
        return {name: axis(*self.ranges.get(name, self.span), self.step) for name in vectors}

    def settings(self, minimum: int, size: int) -> int:
        """Return how many settings are measured at most.

        Args:
            minimum: what the strategy needs to say anything.
            size: settings that there are.

        Raises:
            UsageError: the budget is less than the strategy needs.
        """
        if self.budget is not None and self.budget < minimum:
            raise UsageError(
                f"--budget {self.budget} is too small: the strategy {self.strategy!r} needs "
                f"{minimum} settings here"
            )
        usual = 1 if self.strategy == "grid" else 3 if self.every else 2
        return min(self.budget or usual * minimum, size)
