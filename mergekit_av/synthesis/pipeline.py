"""The workflow of `av-synth run`: all stages in a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergekit_av.data.publish import prepare_data_set
from mergekit_av.errors import UsageError
from mergekit_av.hub.upload import check_access, push
from mergekit_av.synthesis.clean.run import clean_generated, require_libraries
from mergekit_av.synthesis.generate.expansion import PersonaStage
from mergekit_av.synthesis.generate.personas import sample
from mergekit_av.synthesis.generate.queries import QueryStage
from mergekit_av.synthesis.generate.responses import ResponseStage
from mergekit_av.synthesis.generate.tree import TreeShape

from .folder import CREATED, QUERIES, RESPONSES, SAMPLED, begun_folder
from .stage import CostEstimate, GenerationConfig, Generator, StageResult, run_stages

RECORDS = "records"


@dataclass(frozen=True)
class SynthesisConfig:
    """Say which data set to make, and with which model.

        from mergekit_av.endpoints.config import ClientConfig
        from mergekit_av.synthesis.pipeline import SynthesisConfig, synthesize
        from mergekit_av.synthesis.stage import GenerationConfig

        generation = GenerationConfig(ClientConfig("openai/gpt-4o"))
        synthesize(SynthesisConfig("tone.yml", count=500, generation=generation))

    Attributes:
        domain: a name or YAML file.
        count: queries; cleaning leaves fewer records. Personas are created where fewer have been
            sampled.
        generation: the model, and how it is asked.
        out: the folder; `data/DOMAIN` without it.
        source: sample personas from here instead of creating them, see `sample`.
        shape: of the tree in which personas are created.
        plain: see `PersonaStage`.
        push_to_hub: the repository to push the data set to.
        private: make that repository private.

    Raises:
        UsageError: options that do not go together.
    """

    domain: str | Path
    count: int
    generation: GenerationConfig
    out: Path | None = None
    source: str | None = None
    shape: TreeShape = field(default_factory=lambda: TreeShape(depth=None))
    plain: bool = False
    push_to_hub: str | None = None
    private: bool = False

    def __post_init__(self):
        if self.private and not self.push_to_hub:
            raise UsageError("--private goes with --push-to-hub")


@dataclass(frozen=True)
class Synthesized:
    """Hold what a call of `synthesize` made.

    Attributes:
        results: of each stage; none on a dry run.
        commit: the address of the commit on the Hub, where the data set was pushed.
    """

    results: Sequence[StageResult]
    commit: str | None = None


def synthesize(
    config: SynthesisConfig, on_result: Callable[[StageResult], None] | None = None
) -> Synthesized:
    """Make a data set, from where it was interrupted: personas, queries, responses, clean records.

    Args:
        on_result: is called with the result of each stage once all are made, before they are pushed.

    Raises:
        AVError: a library that cleaning needs is missing; another process is at the folder; see the
            stages; the Hub refuses it. What is done is kept.
    """
    require_libraries()  # of the last stage, before the first is paid for
    repo = None if config.generation.dry_run else config.push_to_hub
    with begun_folder(config.domain, config.out) as folder:
        generator = Generator(folder, config.generation)
        if config.source:
            how = config.generation
            sample(folder, config.source, config.count, how.seed, how.restart)
        pipeline = _Pipeline(generator, config)
        if repo:
            check_access(repo, repo_type="dataset")
        results = run_stages(generator, pipeline.estimates(), pipeline.make)
        if on_result:
            for result in results:
                on_result(result)
        if not repo:
            return Synthesized(results, None)
        commit = push(
            lambda _: prepare_data_set(folder.path),
            repo,
            repo_type="dataset",
            private=config.private or None,
        )
    return Synthesized(results, commit)


class _Pipeline:
    """Hold the stages of a data set."""

    def __init__(self, generator: Generator, config: SynthesisConfig):
        self.folder, self.count = generator.folder, config.count
        sampled = len(self.folder.entries(SAMPLED))
        self.created = max(0, config.count - sampled)
        self.personas = PersonaStage(generator, config.shape, self.created, config.plain)
        self.queries = QueryStage(generator, config.count)
        self.responses = ResponseStage(generator)

    def estimates(self) -> dict[str, CostEstimate]:
        """Estimate the cost of each stage, of what is not there yet."""
        estimates = {CREATED: self.personas.estimate()} if self.created else {}
        new = self.personas.missing() if self.created else 0
        missing = max(0, self.count - len(self.folder.queries()))
        return estimates | {
            QUERIES: self.queries.estimate(new if self.personas.plain else 0),
            RESPONSES: self.responses.estimate(missing),
        }

    def make(self) -> dict[str, str]:
        """Make all, and return stage → what it has come to.

        Raises:
            AVError: see the stages; what is done is kept.
        """
        results = {}
        if self.created:
            results[CREATED] = f"{self.personas.make():,} personas created"
        results[QUERIES] = f"{self.queries.make():,} queries"
        results[RESPONSES] = f"{self.responses.make():,} responses"
        results[RECORDS] = str(clean_generated(self.folder))
        return results
