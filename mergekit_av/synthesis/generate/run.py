"""The workflows of the stages by themselves: personas, queries, responses."""

from pathlib import Path

from mergekit_av.synthesis.folder import CREATED, QUERIES, RESPONSES, begun_folder, locked_folder
from mergekit_av.synthesis.stage import GenerationConfig, Generator, StageResult, run_stages

from .expansion import PersonaStage
from .personas import sample
from .queries import QueryStage
from .responses import ResponseStage
from .tree import TreeShape


def sample_personas(
    domain: str | Path,
    source: str,
    count: int | None = None,
    *,
    out: Path | None = None,
    seed: int = 0,
    restart: bool = False,
) -> tuple[Path, int]:
    """Begin the data folder of a domain with a sample of personas from elsewhere; see `sample`.

    Returns:
        The folder, and the number of sampled personas in it.

    Raises:
        AVError: see `begun_folder` and `sample`.
    """
    with begun_folder(domain, out) as folder:
        return folder.path, sample(folder, source, count, seed, restart)


def create_personas(
    domain: str | Path,
    config: GenerationConfig,
    *,
    out: Path | None = None,
    shape: TreeShape | None = None,
    plain: bool = False,
) -> list[StageResult]:
    """Begin the data folder of a domain with personas that a model creates; see `PersonaStage`.

    Raises:
        AVError: see `begun_folder`, `Generator` and `PersonaStage.make`.
    """
    with begun_folder(domain, out) as folder:
        generator = Generator(folder, config)
        stage = PersonaStage(generator, shape or TreeShape(), plain=plain)

        def make() -> dict[str, str]:
            return {CREATED: f"{folder.path}: {stage.make():,} personas created"}

        return run_stages(generator, {CREATED: stage.estimate()}, make)


def generate_queries(
    path: Path, config: GenerationConfig, count: int | None = None
) -> list[StageResult]:
    """Make the query of each persona in a data folder that has none.

    Args:
        count: the most queries in all.

    Raises:
        AVError: see `locked_folder`, `Generator` and `QueryStage.make`.
    """
    with locked_folder(path) as folder:
        generator = Generator(folder, config)
        stage = QueryStage(generator, count)

        def make() -> dict[str, str]:
            return {QUERIES: f"{path}: {stage.make():,} queries"}

        return run_stages(generator, {QUERIES: stage.estimate()}, make)


def generate_responses(path: Path, config: GenerationConfig) -> list[StageResult]:
    """Make the response to each query in a data folder at each level that is missing.

    Raises:
        AVError: see `locked_folder`, `Generator` and `ResponseStage.make`.
    """
    with locked_folder(path) as folder:
        generator = Generator(folder, config)
        stage = ResponseStage(generator)

        def make() -> dict[str, str]:
            return {RESPONSES: f"{path}: {stage.make():,} responses"}

        return run_stages(generator, {RESPONSES: stage.estimate()}, make)
