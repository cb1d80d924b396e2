"""What the stages that ask a model share."""

import datetime
import hashlib
from dataclasses import dataclass
from typing import Any

from mergekit_av.endpoints.budget import Usage
from mergekit_av.endpoints.client import Completion, Completions
from mergekit_av.io.journal import Journal

from .folder import DataFolder
from .prompts import Prompt


@dataclass(frozen=True)
class Maker:
    """A model at work for a data folder.

    Attributes:
        seed: of all that is drawn; the same for the same item, whenever and after whatever it is made.
        restart: whether a stage whose settings have changed is started over.
        max_tokens: the most an answer may have; None for what fits what is asked.
    """

    folder: DataFolder
    client: Completions
    seed: int
    restart: bool = False
    max_tokens: int | None = None

    def open(self, stage: str, prompts: list[Prompt], **settings: Any) -> Journal:
        """The journal of a stage: see `DataFolder.stage`."""
        endpoint = self.client.endpoint
        texts = {f"prompt {prompt.file.name}": prompt.fingerprint for prompt in prompts}
        return self.folder.stage(
            stage,
            {
                "model": endpoint.model,
                "base_url": endpoint.base_url if endpoint.own else None,
                "temperature": self.client.temperature,
                "max_tokens": self.max_tokens,
                "seed": self.seed,
                **settings,
                **texts,
            },
            self.restart,
        )

    def made(self, completion: Completion, prompt: Prompt) -> dict[str, Any]:
        """Where a completion comes from, for its line."""
        now = datetime.datetime.now(datetime.UTC)
        return {
            "model": self.client.endpoint.model,
            "date": now.isoformat(timespec="seconds"),
            "finish_reason": completion.finish_reason,
            "prompt": prompt.fingerprint,
            "usage": completion.usage.as_json(),
        }

    def draw(self, *names: object) -> int:
        """A number below 2³¹ that depends on the seed and the names alone."""
        text = "\0".join(map(str, (self.seed, *names)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1

    def limit(self, tokens: int) -> int:
        """The most tokens for what should have no more than so many."""
        return self.max_tokens or tokens


@dataclass(frozen=True)
class Estimate:
    """What a stage will cost, roughly: calls, tokens read and written."""

    calls: int
    input: int
    output: int

    def usage(self, maker: Maker) -> Usage:
        usd = maker.client.spending.usage(self.input, self.output).usd
        return Usage(self.calls, self.input, self.output, usd)


def tokens_in(characters: int) -> int:
    """How many tokens a text of so many characters has, in English, roughly."""
    return characters // 4
