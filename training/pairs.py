"""From records to preference pairs: a better level is preferred over a worse one."""

from collections.abc import Iterable
from itertools import combinations, pairwise
from typing import Any, Literal

from mergekit_av.records import Record

Pairing = Literal["adjacent", "all", "first"]
TURN = "turn"


def preference_pairs(
    records: Iterable[Record], pairing: Pairing = "adjacent"
) -> list[dict[str, Any]]:
    """Rows in TRL's preference format: `prompt`, `chosen`, `rejected`; beside them `turn`.

    `adjacent` is the paper's: expert over generic, generic over avoidance; `all` adds every pair
    of levels further apart; `first` compares the first level with each of the others. Conversations
    stay messages, plain text stays text.

    `turn` is the λ at which the preference turns, for those who train at several. The best level is
    meant for λ = 1, the others for even steps from 0 down to -1, three levels so for 1, -1/2 and
    -1; a pair turns half-way between its two.
    """
    pairs = PAIRS[pairing]
    rows = []
    for record in records:
        responses = list(record.responses.values())
        steps = max(len(responses) - 1, 1)
        meant = [1.0, *(-step / steps for step in range(1, len(responses)))]
        rows += [
            {**_row(record, better, worse), TURN: (above + below) / 2}
            for (better, above), (worse, below) in pairs(zip(responses, meant, strict=True))
        ]
    return rows


def _all_pairs(responses: Iterable[tuple[str, float]]):
    return combinations(responses, 2)


def _first_pairs(responses: Iterable[tuple[str, float]]):
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
