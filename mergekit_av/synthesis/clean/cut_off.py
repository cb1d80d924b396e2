"""Texts that stop before their end."""

import unicodedata

# A sentence's end, or the end of what is quoted or in brackets; after it may stand Markdown's emphasis.
ENDS = ".!?…。！？؟।\"'”’»)]`"
EMPHASIS = "*_"
EMOJI = ("So", "Sk", "Mn", "Cf")


def is_cut_off(text: str) -> bool:
    """Whether a text does not end where a sentence does, as when a model's tokens ran out."""
    last = text.rstrip().rstrip(EMPHASIS)[-1:]
    # A friendly text may end with an emoji: a symbol, and perhaps the mark that makes it one.
    return not last or (last not in ENDS and unicodedata.category(last) not in EMOJI)
