"""Refusals where no refusal was asked for."""

import re

from mergekit_av.data.domain import Domain

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


def asks_for_refusal(domain: Domain, level: str) -> bool:
    """Whether a refusal is what a level is for, as its name, sentence or instruction says."""
    says = (level.replace("_", " "), domain.levels[level], domain.prompts.get(level, ""))
    return any(ASKED.search(text) for text in says)


def is_refusal(text: str) -> bool:
    """Whether a text opens, within two sentences, with its writer's being unable or unwilling to
    help, in the phrases of language models, and does not help in spite of it."""
    opening = " ".join(SENTENCE.split(text.strip())[:2])
    found = REFUSES.search(opening)
    return found is not None and not ANSWERS.search(text, found.end())
