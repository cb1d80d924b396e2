"""Publish a folder on the Hub: an alignment vector, a merged checkpoint or a data set."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id

from mergekit_av.data.publish import prepare_data_set
from mergekit_av.data.records import RECORDS
from mergekit_av.errors import AVError
from mergekit_av.hub import upload
from mergekit_av.hub.errors import hub_errors
from mergekit_av.hub.upload import RepoType, Upload
from mergekit_av.merge.publish import prepare_model
from mergekit_av.vectors.metadata import METADATA
from mergekit_av.vectors.publish import prepare_vector


def prepare(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    base: str | None = None,
    token: str | bool | None = None,
) -> Upload:
    """Check a folder whole, and return what goes to the repository.

    The folder stays as it is.

    Args:
        base: of a vector: the Hub id (`id@revision`) that its base has; its weights are compared.

    Raises:
        AVError: something is damaged, incomplete, not finite, or should not be published.
    """
    with hub_errors(f"{repo_id!r} is no name for a repository"):
        validate_repo_id(repo_id)
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise AVError(f"there is no folder {folder}")
    if (folder / METADATA).is_file():
        return prepare_vector(folder, repo_id, base=base, token=token)
    if base is not None:
        raise AVError(f"{folder} is no alignment vector: --base is for those")
    if repo_type_of(folder) == "dataset":
        return prepare_data_set(folder)
    if (folder / "adapter_config.json").is_file():
        raise AVError(f"{folder} is an adapter: push it with `hf upload {repo_id} {folder}`")
    return prepare_model(folder, repo_id, token=token)


def repo_type_of(folder: str | os.PathLike) -> RepoType:
    """Return the type of the repository that a folder goes to: a data set has records."""
    return "dataset" if (Path(folder).expanduser() / RECORDS).is_file() else "model"


def push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    token: str | bool | None = None,
    base: str | None = None,
    **options: Any,
) -> str:
    """Push the folder of an alignment vector, of a merged checkpoint or of a data set, in one commit.

    Args:
        base: see `prepare`.
        options: see `hub.upload.push`.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        AVError: see `prepare` and `hub.upload.push`.
    """
    return upload.push(
        lambda repo_id: prepare(folder, repo_id, base=base, token=token),
        repo_id,
        repo_type=repo_type_of(folder),
        token=token,
        **options,
    )
