"""The stages that ask a model: what they are made with, what they cost, how they are run."""

import datetime
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_av.endpoints.budget import Usage
from mergekit_av.endpoints.client import Completion, Completions, connect
from mergekit_av.endpoints.config import ClientConfig
from mergekit_av.io.journal import Journal

from .folder import DataFolder
from .prompts import Prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationConfig:
    """Say with which model a stage is made, and how.

    Attributes:
        client: where it names no model, the one with which the folder was made so far is asked.
        seed: of all that is drawn.
        temperature: of sampling.
        max_tokens: the most an answer may have; None for what fits what is asked.
        restart: start a stage over whose settings have changed.
        dry_run: make the folder, log what the stages will cost, ask nothing.
    """

    client: ClientConfig
    seed: int = 0
    temperature: float = 1.0
    max_tokens: int | None = None
    restart: bool = False
    dry_run: bool = False


class Generator:
    """Generate texts for a data folder with a model.

    Raises:
        UsageError, AVError: see `connect`.
    """

    def __init__(self, folder: DataFolder, config: GenerationConfig):
        asked = config.client.or_else(folder.made_with("model"), folder.made_with("base_url"))
        before = sum(folder.spending().values(), Usage())
        self.folder, self.config = folder, config
        self.client: Completions = connect(
            asked, before, temperature=config.temperature, needs_key=not config.dry_run
        )

    def open_journal(self, stage: str, prompts: list[Prompt], **settings: Any) -> Journal:
        """Open the journal of a stage; see `DataFolder.stage`.

        Args:
            settings: the stage's own, beside those of the configuration.
        """
        endpoint, config = self.client.endpoint, self.config
        texts = {f"prompt {prompt.file.name}": prompt.fingerprint for prompt in prompts}
        return self.folder.stage(
            stage,
            {
                "model": endpoint.model,
                "base_url": endpoint.base_url if endpoint.own else None,
                "temperature": config.temperature,
                "max_tokens": config.max_tokens,
                "seed": config.seed,
                **settings,
                **texts,
            },
            config.restart,
        )

    def provenance(self, completion: Completion, prompt: Prompt) -> dict[str, Any]:
        """Return where a completion comes from, for its line in the journal."""
        now = datetime.datetime.now(datetime.UTC)
        return {
            "model": self.client.endpoint.model,
            "date": now.isoformat(timespec="seconds"),
            "finish_reason": completion.finish_reason,
            "prompt": prompt.fingerprint,
            "usage": completion.usage.as_json(),
        }

    def draw(self, *names: object) -> int:
        """Return a number below 2³¹ that depends on the seed and the names alone: the same for the
        same item, whenever and after whatever it is made."""
        text = "\0".join(map(str, (self.config.seed, *names)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1

    def max_tokens(self, expected: int) -> int:
        """Return the most tokens of an answer that should have no more than so many."""
        return self.config.max_tokens or expected


@dataclass(frozen=True)
class CostEstimate:
    """Estimate what a stage will cost: calls, tokens read and written."""

    calls: int
    input: int
    output: int

    def usage(self, generator: Generator) -> Usage:
        """Return the estimate with the price of a model."""
        usd = generator.client.spending.usage(self.input, self.output).usd
        return Usage(self.calls, self.input, self.output, usd)


@dataclass(frozen=True)
class StageResult:
    """Say what a stage has come to; as text, a line.

    Attributes:
        stage: one of STAGES, or `records`.
        text: what it has made.
        spent: what it has cost so far, None where it asks no model.
    """

    stage: str
    text: str
    spent: Usage | None = None

    def __str__(self) -> str:
        return self.text if self.spent is None else f"{self.text}; {self.spent}"


def run_stages(
    generator: Generator,
    estimates: Mapping[str, CostEstimate],
    make: Callable[[], Mapping[str, str]],
) -> list[StageResult]:
    """Log what stages will cost, make them, and keep what they have cost, also where one fails.

    Args:
        make: makes all of them, and returns stage → what it has come to.

    Returns:
        What each has come to; nothing on a dry run.
    """
    _log_costs(generator, estimates)
    if generator.config.dry_run:
        return []
    try:
        made = make()
    finally:
        generator.folder.keep_spending()
    spent = generator.folder.spending()
    return [StageResult(stage, text, spent.get(stage)) for stage, text in made.items()]


def tokens_in(characters: int) -> int:
    """Return how many tokens a text of so many characters has, in English, roughly."""
    return characters // 4


def _log_costs(generator: Generator, estimates: Mapping[str, CostEstimate]) -> None:
    usages = {stage: estimate.usage(generator) for stage, estimate in estimates.items()}
    for stage, usage in usages.items():
        if usage.calls:
            log.info("%s: about %s", stage, usage)
    spending = generator.client.spending
    if spending.budget:
        log.info("of a budget of %s, %s so far", spending.budget, spending.before)
        if not spending.budget.covers(sum(usages.values(), spending.before)):
            log.warning("WARNING: the budget will not be enough for all of it")
