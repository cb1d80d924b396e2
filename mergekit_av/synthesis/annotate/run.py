"""The workflow of `av-synth annotate`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mergekit_av.data.domain import Domain
from mergekit_av.data.records import load_records
from mergekit_av.errors import UsageError
from mergekit_av.synthesis.folder import DataFolder

from .items import ANNOTATIONS, AnnotationItem, Annotations, annotations_file, assignment
from .sheet import read_sheet

Ask = Callable[[list[AnnotationItem], Domain, Annotations], None]


@dataclass(frozen=True)
class AnnotationConfig:
    """Say who annotates which responses.

    Attributes:
        path: the data folder.
        annotator: whose choices they are.
        sample: queries, each with its responses at all levels.
        shared: so many of these are the same for every annotator; None for half of them.
        seed: of what is drawn.

    Raises:
        UsageError: more are shared than sampled.
    """

    path: Path
    annotator: str
    sample: int = 30
    shared: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.shared is not None and self.shared > self.sample:
            raise UsageError(f"--shared {self.shared} is more than --sample {self.sample}")


class Annotation:
    """Annotate the responses that are assigned to an annotator.

    Attributes:
        domain: of the folder.
        file: the annotator's choices.
        items: the responses, in the order in which they are shown.

    Raises:
        AVError: see `DataFolder`, `annotations_file`, `load_records` and `assignment`.
    """

    def __init__(self, config: AnnotationConfig):
        data = DataFolder(config.path)
        self.config, self.domain, self._folder = config, data.domain, data.path / ANNOTATIONS
        self.file = annotations_file(self._folder, config.annotator)
        half = (config.sample + 1) // 2
        self.items = assignment(
            load_records(data.domain, data.path),
            config.annotator,
            sample=config.sample,
            shared=half if config.shared is None else config.shared,
            seed=config.seed,
        )

    def read_sheet(self, sheet: Path) -> int:
        """Keep what a filled-in sheet says; return how many of the items are annotated now.

        Raises:
            AVError: see `read_sheet`.
        """
        choices = read_sheet(sheet, self.items, self.domain)
        return self._annotate(lambda annotations: annotations.choose(choices))

    def ask(self, ask: Ask) -> int:
        """Have someone asked for each item; return how many of them are annotated now.

        Args:
            ask: shows those that have no level yet, and calls `Annotations.choose` with each level.
        """
        return self._annotate(lambda annotations: ask(self.items, self.domain, annotations))

    def _annotate(self, add: Callable[[Annotations], None]) -> int:
        with Annotations(self._folder, self.config.annotator) as annotations:
            add(annotations)
            return sum(item.id in annotations.chosen for item in self.items)
