"""The cost of completions, within a budget that is never exceeded."""

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mergekit_av.errors import AVError

BUDGET = re.compile(r"(\d[\d,_]*(?:\.\d+)?)\s*(USD|tokens)", re.IGNORECASE)
MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """Hold USD per million tokens that a model reads, and that it writes."""

    input: float
    output: float

    def of(self, input: int, output: int) -> float:
        """Return the USD of so many tokens read and written."""
        return (input * self.input + output * self.output) / MILLION


@dataclass(frozen=True)
class Usage:
    """Count calls, the tokens read and written in them, and their USD, None where a price is unknown."""

    calls: int = 0
    input: int = 0
    output: int = 0
    usd: float | None = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.calls + other.calls,
            self.input + other.input,
            self.output + other.output,
            None if self.usd is None or other.usd is None else self.usd + other.usd,
        )

    @property
    def tokens(self) -> int:
        return self.input + self.output

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        usd = "at an unknown price" if self.usd is None else f"{self.usd:.4f} USD"
        return f"{self.calls:,} calls, {self.input:,} tokens read, {self.output:,} written, {usd}"


@dataclass(frozen=True)
class Budget:
    """Hold the most that may be spent: USD, or tokens read and written."""

    amount: float
    unit: Literal["USD", "tokens"]

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Return a budget as one writes it: `20USD`, `500000tokens`.

        Raises:
            AVError: it is none.
        """
        found = BUDGET.fullmatch(text.strip())
        if found and (amount := float(re.sub("[,_]", "", found[1]))):
            return cls(amount, "USD" if found[2].lower() == "usd" else "tokens")
        raise AVError(f"{text!r} is no budget, like 20USD or 500000tokens")

    def amount_of(self, usage: Usage) -> float:
        """Return what counts of a usage; an unknown price counts as none."""
        return usage.tokens if self.unit == "tokens" else usage.usd or 0.0

    def covers(self, usage: Usage) -> bool:
        """Tell whether a usage is within the budget."""
        return self.amount_of(usage) <= self.amount

    def __str__(self) -> str:
        return f"{self.amount:,.10g} {self.unit}"


class BudgetSpent(AVError):
    """Report that what is left of the budget may not be enough for the next completion."""


class Spending:
    """Count what has been spent, of a budget or without one.

    A call is not begun unless the most that it can cost is left, beside what those under way may
    still cost.

    Attributes:
        before: what had been spent of the budget earlier.
        now: what has been spent since.

    Raises:
        AVError: the budget is in USD and the price is unknown.
    """

    def __init__(
        self, price: Price | None, budget: Budget | None = None, before: Usage | None = None
    ):
        self.price, self.budget = price, budget
        self.before, self.now = before or Usage(), Usage()
        self._held: list[float] = []
        if budget and budget.unit == "USD" and None in (price, self.before.usd):
            raise AVError(
                "a budget in USD needs the model's price, which is unknown: pass --price-in and "
                "--price-out (USD per million tokens), or a budget in tokens"
            )

    @property
    def total(self) -> Usage:
        return self.before + self.now

    def usage(self, input: int, output: int) -> Usage:
        """Return what one call costs."""
        usd = None if self.price is None else self.price.of(input, output)
        return Usage(1, input, output, usd)

    def hold(self, most: Usage) -> bool:
        """Keep aside the most that a call can cost; False where calls under way must end first.

        Raises:
            BudgetSpent: none is under way, and what is left is not enough.
        """
        amount, budget = self._amount(most), self.budget
        if budget and self._amount(self.total) + sum(self._held) + amount > budget.amount:
            if not self._held:
                raise BudgetSpent(_shortage(budget, self._amount(self.total), amount))
            return False
        self._held.append(amount)
        return True

    def release(self, most: Usage, spent: Usage | None) -> None:
        """Count a call that was held for, has ended, and cost so much."""
        self._held.remove(self._amount(most))
        if spent is not None:
            self.now += spent

    def _amount(self, usage: Usage) -> float:
        return self.budget.amount_of(usage) if self.budget else 0.0


def _shortage(budget: Budget, spent: float, needed: float) -> str:
    if not spent:
        return (
            f"the budget of {budget} is smaller than what one item can cost, "
            f"{needed:,.4g} {budget.unit}: raise it"
        )
    left = max(budget.amount - spent, 0)
    return (
        f"the budget of {budget} is spent but for {left:,.4g}, and the next item can cost "
        f"{needed:,.4g} {budget.unit}: what is done is kept; raise the budget to go on"
    )
