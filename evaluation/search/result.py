"""The result of a search, and what it says."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mergekit_av.evaluation.specificity import spill

from .effects import effects
from .joint import Joint
from .landscape import Landscape, Setting
from .outcome import Outcome
from .problem import Question
from .recipe import Ingredients
from .surfaces import Surfaces


@dataclass(frozen=True)
class SearchResult:
    """All that `av-search` finds.

    Attributes:
        provenance: how it was found: base, vectors, dtype, strategy, machine, versions and the like.
        ingredients: of the recipes.
        budget: settings to measure at most.
        guarded: whether the fluency guard limited where coefficients were looked for.
        training: vector → seconds that its training took, where its metadata says.
        settings: those measured on the validation records, in order.
        seconds: what measuring them took.
        outcomes: one a goal.
        joint: models to compare with.
        interrupted: the search was stopped before its end.
    """

    provenance: dict[str, Any]
    ingredients: Ingredients
    question: Question
    budget: int
    guarded: bool
    training: dict[str, float] = field(default_factory=dict)
    settings: list[Setting] = field(default_factory=list)
    seconds: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)
    joint: list[Joint] = field(default_factory=list)
    interrupted: bool = False

    @cached_property
    def landscape(self) -> Landscape:
        """The settings that were measured, scored."""
        return Landscape.seen(self.question, self.settings)

    @cached_property
    def surface_error(self) -> float:
        """How far surfaces through all other settings are off, nats per token (`Surfaces.error`)."""
        return Surfaces(self.question, self.settings).error()

    @cached_property
    def effects(self) -> dict[tuple[str, str, str], dict[str, float]]:
        """What each vector moves (`effects.effects`)."""
        return effects(self.question, self.settings)

    @property
    def spills(self) -> dict[str, float | None]:
        """Vector → the largest of its effects elsewhere as a share of the largest in its own domain."""
        found = self.effects
        vectors = next(iter(found.values()), {})
        return {
            name: spill({pair: slopes[name] for pair, slopes in found.items()}, name)
            for name in vectors
        }

    @property
    def met(self) -> list[Outcome]:
        """The outcomes that meet their goals on the validation records."""
        return [found for found in self.outcomes if found.met]

    @property
    def holding(self) -> int:
        """How many of these do so on the test records as well."""
        return sum(found.holds for found in self.met)

    @property
    def tested(self) -> bool:
        """Whether any outcome was measured on test records."""
        return any(found.tests for found in self.outcomes)

    def damage(self, found: Outcome) -> float | None:
        """Return the damage by the validation queries where they limited the search, else by the test
        queries; None where there were none."""
        return found.damage if self.guarded else found.test_damage
