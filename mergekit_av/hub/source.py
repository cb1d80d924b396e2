"""Resolve what a user names, a folder or a Hub id, to a folder."""

import os
import re
from pathlib import Path

from mergekit_av.errors import AVError

from .errors import hub_errors
from .trust import SNAPSHOTS

# What a model needs besides pickles and code, neither of which is ever fetched.
FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
OWNER_AND_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def resolve(
    source: str | os.PathLike, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """Resolve what names a model or an alignment vector to a folder: itself, or a snapshot of the Hub.

    Args:
        source: a folder, or a Hub id, with `@revision` where one is meant.
        token: for a private repository; by default the one that the user has logged in with.

    Raises:
        AVError: there is neither, the Hub does not give it, or only a part of it is in the cache.
    """
    folder = Path(os.path.expanduser(source))
    if folder.is_dir():
        return folder
    name = os.fspath(source)
    if not HUB_ID.fullmatch(name):
        raise AVError(f"there is no folder {name}")
    repo, _, at_revision = name.partition("@")

    from huggingface_hub import snapshot_download

    with hub_errors(f"{name} is no folder here, and the Hub has not given it", token):
        found = snapshot_download(
            repo, revision=revision or at_revision or None, allow_patterns=FILES, token=token
        )
    return Path(found)


def revision_of(folder: Path) -> str | None:
    """Return the commit of which a folder is the snapshot; None for any other folder."""
    return folder.name if folder.parent.name == SNAPSHOTS else None


def hub_name(name: str) -> str | None:
    """Return the name where it is a Hub id; None where it can only be a folder, or is one here."""
    is_id = OWNER_AND_NAME.fullmatch(name) and not Path(name).is_dir()
    return name if is_id else None
