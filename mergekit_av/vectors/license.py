"""The license of a base, which everything made from it inherits."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_av.hub.source import hub_name
from mergekit_av.models.default_base import FINGERPRINT, LICENSE
from mergekit_av.text.card import license_in

if TYPE_CHECKING:
    from .metadata import BaseIdentity


def license_of(
    base: "BaseIdentity", folder: Path | None = None, token: str | bool | None = None
) -> dict[str, Any]:
    """Return `license`, and `license_name` and `license_link` where that is `other`; {} where unknown.

    Args:
        folder: where the base is, if not where its id says.
    """
    if base.fingerprint == FINGERPRINT:
        return {"license": LICENSE}
    if found := _read((folder or Path(os.path.expanduser(base.id))) / "README.md"):
        return found
    if hub_name(base.id) is None:
        return {}

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    try:
        card = hf_hub_download(base.id, "README.md", revision=base.revision, token=token)
        return _read(Path(card))
    except (HTTPError, OSError, ValueError):
        return {}


def _read(card: Path) -> dict[str, Any]:
    try:
        return license_in(card.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
