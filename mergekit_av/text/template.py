"""Text files with placeholders like `{query}`, which a user may edit."""

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from mergekit_av.errors import AVError

PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Template:
    """A text with placeholders.

    Args:
        known: the placeholders that it may have.
        needed: those that it cannot do without.

    Attributes:
        file: where it is.
        fingerprint: of its text.

    Raises:
        AVError: the file cannot be read, has a placeholder that is not known, or lacks one that is
            needed.
    """

    def __init__(self, file: Path, known: Collection[str], needed: Collection[str]):
        self.file = Path(file)
        try:
            self.text = self.file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise AVError(f"cannot read {self.file}: {reason}") from error
        found = PLACEHOLDER.findall(self.text)
        for placeholder in found:
            if placeholder not in known:
                raise AVError(
                    f"{self.file} has the placeholder {{{placeholder}}}, which nothing stands for: "
                    f"known are {', '.join(known)}"
                )
        for placeholder in needed:
            if placeholder not in found:
                raise AVError(f"{self.file} lacks the placeholder {{{placeholder}}}")
        self.fingerprint = hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def fill(self, **values: object) -> str:
        """Return the text with values in it; what looks like a placeholder in a value is nothing
        but text."""
        return PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), self.text)
