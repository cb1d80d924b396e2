"""All stages in a row: personas, queries, responses, records."""

from mergekit_av.synthesis.clean.run import clean_made
from mergekit_av.synthesis.generate.expansion import Creation
from mergekit_av.synthesis.generate.queries import Asking
from mergekit_av.synthesis.generate.responses import Answering
from mergekit_av.synthesis.generate.tree import Tree

from .folder import CREATED, QUERIES, RESPONSES, SAMPLED
from .stage import Estimate, Maker

RECORDS = "records"


class Pipeline:
    """What `av-synth run` does.

    Args:
        count: queries. Personas are created where fewer have been sampled.
        plain: see `Creation`.
    """

    def __init__(self, maker: Maker, count: int, tree: Tree, plain: bool = False):
        self.folder, self.count = maker.folder, count
        sampled = len(self.folder.entries(SAMPLED))
        self.created = max(0, count - sampled)
        self.creation = Creation(maker, tree, self.created, plain)
        self.asking, self.answering = Asking(maker, count), Answering(maker)

    def estimates(self) -> dict[str, Estimate]:
        """Of each stage, what is not there yet."""
        estimates = {CREATED: self.creation.estimate()} if self.created else {}
        new = self.creation.missing() if self.created else 0
        missing = max(0, self.count - len(self.folder.queries()))
        return estimates | {
            QUERIES: self.asking.estimate(new if self.creation.plain else 0),
            RESPONSES: self.answering.estimate(missing),
        }

    def make(self) -> dict[str, str]:
        """Stage → what it has come to.

        Raises:
            AVError: see the stages; what is done is kept.
        """
        results = {}
        if self.created:
            results[CREATED] = f"{self.creation.make():,} personas created"
        results[QUERIES] = f"{self.asking.make():,} queries"
        results[RESPONSES] = f"{self.answering.make():,} responses"
        results[RECORDS] = str(clean_made(self.folder))
        return results
