"""What comes from strangers: refused before anything of it is used, and never executed.

Only JSON and safetensors are read. What the tensors and the metadata say of one another is checked
in `AlignmentVector.check`.
"""

from collections.abc import Iterable
from pathlib import Path

from .errors import AVError

# Endings under which pickles are known.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
SNAPSHOTS = "snapshots"


def refuse_code(config: dict, where: Path) -> None:
    """Raise AVError for a config.json that names Python code to run."""
    if "auto_map" in config:
        raise AVError(
            f"{where} names code of its own (`auto_map`), which is never run: take a model whose "
            "architecture transformers has, and remove the entry"
        )


def refuse_foreign_files(folder: Path) -> None:
    """Raise AVError for a folder with pickles, Python code, or links that lead out of it.

    Of a Hub repository those count as well that are in it and were not fetched.
    """
    for path in sorted({*folder.rglob("*"), *(folder / name for name in _in_repository(folder))}):
        if path.suffix in PICKLES:
            raise AVError(f"{path} may be a pickle, which runs code when it is opened: remove it")
        if path.suffix == ".py":
            raise AVError(f"{path} is code, which has no place here: remove it")
    refuse_links(folder.iterdir(), folder)


def _in_repository(folder: Path) -> list[str]:
    """All files of the Hub repository that a folder is a snapshot of, where its list is cached."""
    if folder.parent.name != SNAPSHOTS:
        return []
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    cache, name = folder.parents[2], folder.parents[1].name
    repo = name.removeprefix("models--").replace("--", "/")
    try:
        files = get_cached_repo_tree(repo, revision=folder.name, cache_dir=cache)
    except (CachedRepoTreeNotFoundError, OSError, ValueError):
        return []
    return [file.path for file in files]


def refuse_links(paths: Iterable[Path], folder: Path) -> None:
    """Raise AVError for a link that leads out of a folder.

    A snapshot in the Hub's cache consists of links to blobs elsewhere in the cache.
    """
    home = folder.resolve()
    if home.parent.name == SNAPSHOTS:
        home = home.parents[2]
    for path in paths:
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise AVError(f"{path} is a link that leads out of its folder: put the file there")
