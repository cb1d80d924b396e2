"""The tree in which personas are expanded from roots."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_av.errors import AVError
from mergekit_av.synthesis.folder import id_of


@dataclass(frozen=True)
class TreeShape:
    """Describe the shape of a tree.

    Attributes:
        roots: personas at the start of each round.
        children: personas that each is expanded to.
        depth: how often in succession; None for as often as it takes.
        rounds: each with other roots.
    """

    roots: int = 5
    children: int = 5
    depth: int | None = 4
    rounds: int = 3

    def size(self) -> int:
        """Return the number of personas in the whole of it.

        Raises:
            AVError: its depth is not given.
        """
        if self.depth is None:
            raise AVError("a tree of personas without a depth has no end: give it one")
        of_root = sum(self.children**level for level in range(self.depth + 1))
        return self.rounds * self.roots * of_root


@dataclass(frozen=True)
class Node:
    """Hold a persona in its place."""

    id: str
    persona: str
    query: str | None
    round: int
    depth: int


@dataclass(frozen=True)
class Expansion:
    """Describe what one completion is asked for: so many roots of a round, or relations of a persona."""

    round: int
    count: int
    parent: Node | None = None

    @property
    def id(self) -> str:
        return f"{self.round}-{self.parent.id if self.parent else 'roots'}"

    @property
    def depth(self) -> int:
        return self.parent.depth + 1 if self.parent else 0


class PersonaTree:
    """Hold the personas so far, each once.

    Args:
        entries: lines of the stage.
        count: the most personas, shared among the rounds.
    """

    def __init__(self, shape: TreeShape, count: int, entries: Iterable[Mapping[str, Any]]):
        self.shape, self.count = shape, count
        self.nodes: dict[str, Node] = {}
        self.tries: Counter[str] = Counter()
        self._expanded: set[str] = set()
        for entry in entries:
            self.add(entry)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add the personas of a line."""
        self.tries[entry["id"]] += 1
        if entry["personas"]:
            self._expanded.add(entry["id"])
        for one in entry["personas"]:
            id = id_of(one["persona"])
            node = Node(id, one["persona"], one["query"], entry["round"], entry["depth"])
            self.nodes.setdefault(id, node)

    @property
    def missing(self) -> int:
        """Return the number of personas that are not there yet."""
        return max(0, self.count - len(self.nodes))

    def roots(self) -> list[Node]:
        """Return the roots of all rounds."""
        return [node for node in self.nodes.values() if node.depth == 0]

    def next(self, tried: set[str]) -> list[Expansion]:
        """Return what can be asked for at the same time: the roots of one round, which must differ from all
        earlier ones, or the relations of the shallowest personas.

        Args:
            tried: ids of the expansions not to be tried again.
        """
        shares = [
            self.count // self.shape.rounds + (round < self.count % self.shape.rounds)
            for round in range(self.shape.rounds)
        ]
        for round, share in enumerate(shares):
            start = Expansion(round, min(self.shape.roots, share))
            if share and start.id not in self._expanded | tried:
                return [start]
        wave = []
        for round, share in enumerate(shares):
            wave += self._deeper(round, share - len(self._of_round(round)), tried)
        # Rounds that have nobody new left to expand leave their share to the others.
        for round in range(self.shape.rounds if not wave else 0):
            wave += self._deeper(round, self.missing - len(wave) * self.shape.children, tried)
        return wave

    def _of_round(self, round: int) -> list[Node]:
        return [node for node in self.nodes.values() if node.round == round]

    def _deeper(self, round: int, missing: int, tried: set[str]) -> list[Expansion]:
        """Return the expansions of a round's shallowest personas that so many more may come from."""
        nodes = [
            node
            for node in self._of_round(round)
            if self.shape.depth is None or node.depth < self.shape.depth
        ]
        more = [Expansion(round, self.shape.children, node) for node in nodes]
        more = [expansion for expansion in more if expansion.id not in self._expanded | tried]
        wanted = max(0, -(-missing // self.shape.children))
        depth = min((expansion.depth for expansion in more), default=0)
        return [expansion for expansion in more if expansion.depth == depth][:wanted]
