"""From records to preference pairs: a better level is preferred over a worse one."""

from collections.abc import Iterable
from itertools import combinations, pairwise
from typing import Any, Literal

from mergekit_av.records import Record

Pairing = Literal["adjacent", "all", "first"]


def preference_pairs(
    records: Iterable[Record], pairing: Pairing = "adjacent"
) -> list[dict[str, Any]]:
    """Rows in TRL's preference format: `prompt`, `chosen`, `rejected`.

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


def _all_pairs(responses: Iterable[str]):
    return combinations(responses, 2)


def _first_pairs(responses: Iterable[str]):
    first, *others = responses
    return [(first, other) for other in others]


PAIRS = {"adjacent": pairwise, "all": _all_pairs, "first": _first_pairs}


def _row(record: Record, chosen: str, rejected: str) -> dict[str, Any]:
    if isinstance(record.prompt, str):
        return {"prompt": record.prompt, "chosen": chosen, "rejected": rejected}
    return {
        "prompt": list(record.prompt),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
