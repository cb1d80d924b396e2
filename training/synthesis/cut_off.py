"""Texts that stop before their end."""

import unicodedata

# What may follow the end of a sentence: closing quotes, brackets and Markdown's emphasis.
CLOSING = "\"'”’»)]*_"
SENTENCE_ENDS = ".!?…。！？؟।"


def is_cut_off(text: str) -> bool:
    """Whether a text does not end where a sentence does, as when a model's tokens ran out."""
    last = text.rstrip().rstrip(CLOSING)[-1:]
    # A friendly text may end with an emoji: a symbol, and perhaps the mark that makes it one.
    return last not in SENTENCE_ENDS and unicodedata.category(last) not in ("So", "Mn", "Sk", "Cf")
