"""Duplicate queries, exact or near."""

import re
from collections.abc import Iterator, Sequence

from tqdm import tqdm

# Jaccard similarity of two queries' shingles from which they are near-duplicates: of 60 words three or
# four scattered ones may differ. The built-in records' most similar queries have 0.05.
SIMILARITY = 0.7
# Words in a shingle: fewer make all queries of a domain alike.
SHINGLE = 3
PERMUTATIONS = 128
# Of the similarity, to look that much further than needed.
LOOK = 0.7


def same_queries(queries: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the position of each query that differs from an earlier one by case, spaces and
    punctuation at most, with the earlier one's."""
    first: dict[tuple[str, ...], int] = {}
    for position, query in enumerate(queries):
        words = tuple(_words(query)) or (query,)
        earlier = first.setdefault(words, position)
        if earlier != position:
            yield position, earlier


def similar_queries(
    queries: Sequence[str], similarity: float = SIMILARITY
) -> Iterator[tuple[int, int, float]]:
    """Yield each query that is a near-duplicate of an earlier one that is none itself: its position, the
    most similar such query's, and their Jaccard similarity, at least `similarity`.

    Candidates come from MinHash and locality-sensitive hashing, so that the time grows with the
    number of queries and not with its square; their similarity is then computed exactly.
    """
    from datasketch import MinHash, MinHashLSH

    # Comparing a pair in vain costs nothing: look further than needed, and miss none.
    index = MinHashLSH(LOOK * similarity, PERMUTATIONS, weights=(0.2, 0.8))
    shingles = [_shingles(query) for query in queries]
    for position, own in enumerate(tqdm(shingles, desc="Comparing", unit="query")):
        hashed = MinHash(PERMUTATIONS)
        hashed.update_batch([shingle.encode() for shingle in own])
        found = [(_jaccard(own, shingles[other]), -other) for other in index.query(hashed)]
        best, other = max(found, default=(0.0, 0))
        if best >= similarity:
            yield position, -other, best
        else:
            index.insert(position, hashed)


def _shingles(text: str) -> set[str]:
    words = _words(text)
    return {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
