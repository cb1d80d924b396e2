"""The form that is asked of a response: free text, no headings or lists (the paper's instruction)."""

import functools
import re

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


def wrong_form(text: str) -> str | None:
    """What a text has that free text has not, e.g. "a list", as CommonMark reads it; or None."""
    tokens = [token.type for token in _parser().parse(text)]
    for token, name in FORMS.items():
        # "1984. What a year" is a numbered list of one item to Markdown, and to nobody else.
        if token in tokens and (token != "ordered_list_open" or tokens.count("list_item_open") > 1):
            return name
    if len(BULLET.findall(text)) > 1:
        return "a list"
    return "a heading" if BOLD_LINE.search(text) else None


@functools.cache
def _parser():
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table")
