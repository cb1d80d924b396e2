"""The license of a base, which everything made from it inherits."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import FINGERPRINT, LICENSE
from .card_parts import license_in
from .models import hub_name

if TYPE_CHECKING:
    from .vector import BaseIdentity


def license_of(
    base: "BaseIdentity | str", folder: Path | None = None, token: str | bool | None = None
) -> dict[str, Any]:
    """`license`, and `license_name` and `license_link` where that is `other`; {} where unknown.

    Args:
        base: its identity, or its name alone.
        folder: where it is, if it is here.
    """
    name = base if isinstance(base, str) else base.id
    if not isinstance(base, str) and base.fingerprint == FINGERPRINT:
        return {"license": LICENSE}
    folder = folder or Path(name).expanduser()
    if found := _read(folder / "README.md"):
        return found
    if hub_name(name) is None:
        return {}

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    revision = None if isinstance(base, str) else base.revision
    try:
        return _read(Path(hf_hub_download(name, "README.md", revision=revision, token=token)))
    except (HTTPError, OSError, ValueError):
        return {}


def _read(card: Path) -> dict[str, Any]:
    try:
        return license_in(card.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
