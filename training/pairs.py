"""From records to preference pairs: a better level is preferred over a worse one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, pairwise
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from mergekit_av.data.records import Record
from mergekit_av.models.chat import encode

from .lambdas import meant

Pairing = Literal["adjacent", "all", "first"]
LAMBDA = "lambda"


def preference_pairs(
    records: Iterable[Record], pairing: Pairing = "adjacent"
) -> list[dict[str, Any]]:
    """Return rows in TRL's preference format: `prompt`, `chosen`, `rejected`.

    `adjacent` is the paper's: expert over generic, generic over avoidance; `all` adds every pair
    of levels further apart; `first` compares the first level with each of the others. Conversations
    stay messages, plain text stays text.
    """
    pairs = PAIRS[pairing]
    return [
        _row(record, better, worse)
        for record in records
        for better, worse in pairs(record.responses.values())
    ]


def spectrum_pairs(
    records: Iterable[Record], lambdas: Sequence[float], pairing: Pairing = "adjacent"
) -> list[dict[str, Any]]:
    """Return rows like those of `preference_pairs`, for training at several λ: beside them `lambda`.

    At each λ one level is preferred over its neighbours (`adjacent`) or over all others (`all`): the
    one that is meant for the nearest λ, see `lambdas.meant`.
    """
    rows = []
    for record in records:
        responses = list(record.responses.values())
        at = meant(len(responses))
        for value in lambdas:
            chosen = min(range(len(at)), key=lambda level: abs(at[level] - value))
            rows += [
                {**_row(record, responses[chosen], responses[other]), LAMBDA: float(value)}
                for other in range(len(at))
                if other != chosen and (pairing == "all" or abs(other - chosen) == 1)
            ]
    return rows


def with_different_responses(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> list[int]:
    """Return the numbers of the rows whose responses are not the same tokens, as far as `limit` shows them."""

    def differ(row: dict[str, Any]) -> bool:
        responses = [row[name] for name in ("chosen", "rejected")]
        texts = [r if isinstance(r, str) else r[0]["content"] for r in responses]
        prompt, (chosen, rejected) = encode(tokenizer, row["prompt"], texts)
        # A prompt that fills the limit is TRL's to leave out.
        room = None if limit is None or limit <= len(prompt) else limit - len(prompt)
        return chosen[:room] != rejected[:room]

    return [number for number, row in enumerate(rows) if differ(row)]


def _all_pairs(responses: Iterable[str]) -> Iterator[tuple[str, str]]:
    return combinations(responses, 2)


def _first_pairs(responses: Iterable[str]) -> Iterator[tuple[str, str]]:
    first, *others = responses
    return ((first, other) for other in others)


PAIRS: dict[Pairing, Callable[[Iterable[str]], Iterator[tuple[str, str]]]] = {
    "adjacent": pairwise,
    "all": _all_pairs,
    "first": _first_pairs,
}


def _row(record: Record, chosen: str, rejected: str) -> dict[str, Any]:
    if isinstance(record.prompt, str):
        return {"prompt": record.prompt, "chosen": chosen, "rejected": rejected}
    return {
        "prompt": list(record.prompt),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
