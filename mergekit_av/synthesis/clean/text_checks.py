"""Checks of one text: its end, its form, whether it refuses."""

import functools
import re
import unicodedata

from mergekit_av.data.domain import Domain

# A sentence's end, or the end of what is quoted or in brackets; after it may stand Markdown's emphasis.
ENDS = ".!?…。！？؟।\"'”’»)]`"
EMPHASIS = "*_"
EMOJI = ("So", "Sk", "Mn", "Cf")
# A bullet that Markdown does not know, and a line that is wholly bold: a heading to every reader.
BULLET = re.compile(r"^\s*[•‣◦▪–—]\s+\S", re.MULTILINE)
BOLD_LINE = re.compile(r"^\s*(\*\*|__)[^*_\n]+\1:?\s*$", re.MULTILINE)
FORMS = {
    "heading_open": "a heading",
    "bullet_list_open": "a list",
    "ordered_list_open": "a list",
    "table_open": "a table",
    "fence": "a code block",
}
# How a level says that it wants a refusal: in its name, its sentence or its instruction.
ASKED = re.compile(
    r"\b(refus(e|es|al|als|ing)|declin(e|es|ing)|abstain\w*|abstention|avoidance"
    r"|(can't|can’t|cannot|unable to|won't|won’t|will not) (help|assist|answer)"
    r"|(do not|don't|don’t|does not|doesn't|doesn’t) (answer|help|assist)"
    r"|no (help|advice|answer))\b",
    re.IGNORECASE,
)
_UNABLE = (
    r"(can(no|'|’| no)t|won['’]t|will not|would not be able to|(am|['’]m|are|['’]re)( \w+)?"
    r" (unable|not (able|allowed|permitted|qualified|in a position)) to"
    r"|(must|have to|need to|will have to) (\w+ )?(decline|refuse)|(don['’]t|do not) have the ability to)"
)
_HELP = (
    r"(help|assist|provide|give|offer|answer|advise|discuss|comment|respond|engage|fulfil|comply"
    r"|suggest|recommend|decline|refuse|weigh in)"
)
REFUSES = re.compile(
    rf"\b(I|we)( \w+)? ?{_UNABLE}\b[^.!?]{{0,40}}\b{_HELP}\b"
    r"|\b(I|we) (must|have to|need to|will have to) (\w+ )?(decline|refuse)\b"
    r"|\bas an (AI|artificial intelligence)\b[^.!?]{0,80}\b(can|do|am|have)(no|n['’]| no)t\b",
    re.IGNORECASE,
)
# "I can't give advice on your case, but here is what is generally known" answers all the same.
ANSWERS = re.compile(
    r"\b(but|however|that said|nevertheless)\b[^.!?]{0,30}"
    r"\b(I can|I could|I['’]ll|I will|I['’]d|here|in general|generally|some general|let me|happy to)\b",
    re.IGNORECASE,
)
SENTENCE = re.compile(r"(?<=[.!?])\s+")


def is_truncated(text: str) -> bool:
    """Tell whether a text does not end where a sentence does, as when a model's tokens ran out."""
    last = text.rstrip().rstrip(EMPHASIS)[-1:]
    # A friendly text may end with an emoji: a symbol, and perhaps the mark that makes it one.
    return not last or (last not in ENDS and unicodedata.category(last) not in EMOJI)


def wrong_form(text: str) -> str | None:
    """Return what a text has that free text has not, e.g. "a list", as CommonMark reads it; or None.

    The paper's instruction for responses asks for free text, without headings or lists.
    """
    tokens = [token.type for token in _parser().parse(text)]
    for token, name in FORMS.items():
        # "1984. What a year" is a numbered list of one item to Markdown, and to nobody else.
        if token in tokens and (token != "ordered_list_open" or tokens.count("list_item_open") > 1):
            return name
    if len(BULLET.findall(text)) > 1:
        return "a list"
    return "a heading" if BOLD_LINE.search(text) else None


def asks_for_refusal(domain: Domain, level: str) -> bool:
    """Tell whether a refusal is what a level is for, as its name, sentence or instruction says."""
    texts = (level.replace("_", " "), domain.levels[level], domain.prompts.get(level, ""))
    return any(ASKED.search(text) for text in texts)


def is_refusal(text: str) -> bool:
    """Tell whether a text opens, within two sentences, with its writer's being unable or unwilling to
    help, in the phrases of language models, and does not help in spite of it."""
    opening = " ".join(SENTENCE.split(text.strip())[:2])
    found = REFUSES.search(opening)
    return found is not None and not ANSWERS.search(text, found.end())


@functools.cache
def _parser():
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table")
