"""Formats of records: our own, TRL's preferences, PKU-SafeRLHF's."""

from typing import Any

from mergekit_av.errors import AVError

from .domain import Domain

Message = dict[str, str]


def read_row(
    row: Any, domain: Domain, where: str
) -> tuple[str | tuple[Message, ...], dict[str, str]]:
    """Return prompt and responses by level, best first, of a row in any of the formats.

    Args:
        where: the row stands, for the error.

    Raises:
        AVError: the row is in none of the formats, lacks something, or is of another domain.
    """
    if not isinstance(row, dict):
        raise AVError(f"{where}: a record must be an object, not {type(row).__name__}")
    levels = list(domain.levels)
    if "responses" in row:
        prompt, texts = _read_record(row, levels, where)
    elif "chosen" in row or "rejected" in row:
        prompt, texts = _read_preference(row, levels, where)
    elif "response_0" in row:
        prompt, texts = _read_safe_rlhf(row, levels, where)
    else:
        raise AVError(
            f"{where}: neither `responses` (our records) nor `chosen` and `rejected` (TRL's)"
        )
    if row.get("domain") not in (None, domain.name):
        raise AVError(f"{where}: `domain` is {row['domain']!r}, not {domain.name!r}")
    return prompt, dict(zip(levels, texts, strict=True))


def text_field(row: dict, field: str, where: str, inside: str = "") -> str:
    """Return the text of a field that cannot be missing or empty.

    Args:
        where: the row stands, for the error.
        inside: the name of what the field is in, `responses.`, for the error.
    """
    value = row.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise AVError(f"{where}: `{inside}{field}` is missing or empty")
    if not isinstance(value, str):
        raise AVError(f"{where}: `{inside}{field}` must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character: "\ud800"
        raise AVError(f"{where}: `{inside}{field}` is not valid Unicode") from error
    return value


def _read_record(row: dict, levels: list[str], where: str):
    query, responses = text_field(row, "query", where), row["responses"]
    if not isinstance(responses, dict):
        raise AVError(f"{where}: `responses` must map levels to texts")
    unknown = [level for level in responses if level not in levels]
    if unknown:
        raise AVError(
            f"{where}: `responses` has the level {unknown[0]!r}; this domain's are {', '.join(levels)}"
        )
    missing = [level for level in levels if level not in responses]
    if missing:
        raise AVError(f"{where}: `responses` lacks the level {missing[0]!r}")
    texts = [text_field(responses, level, where, inside="responses.") for level in levels]
    return ({"role": "user", "content": query},), texts


def _read_preference(row: dict, levels: list[str], where: str):
    if len(levels) != 2:
        raise AVError(
            f"{where}: chosen/rejected pairs need a domain of 2 levels, not {len(levels)}"
        )
    fields = ("chosen", "rejected")
    if not isinstance(row.get("prompt"), list):
        return text_field(row, "prompt", where), [text_field(row, field, where) for field in fields]
    prompt = _messages(row, "prompt", where)
    answers = [_messages(row, field, where) for field in fields]
    for field, answer in zip(fields, answers, strict=True):
        if [message["role"] for message in answer] != ["assistant"]:
            raise AVError(f"{where}: `{field}` must be one assistant message, as TRL's format says")
    return tuple(prompt), [answer[0]["content"] for answer in answers]


def _messages(row: dict, field: str, where: str) -> list[Message]:
    value = row.get(field)
    if not value:
        raise AVError(f"{where}: `{field}` is missing or empty")
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise AVError(f"{where}: `{field}` must be a list of role/content messages")
    return [
        {key: text_field(message, key, where, inside=f"{field}.") for key in ("role", "content")}
        for message in value
    ]


def _read_safe_rlhf(row: dict, levels: list[str], where: str):
    """Read a row of PKU-SafeRLHF: two responses, of which one is the safer."""
    if len(levels) != 2:
        raise AVError(f"{where}: response pairs need a domain of 2 levels, not {len(levels)}")
    if row.get("safer_response_id") not in (0, 1):
        raise AVError(f"{where}: `safer_response_id` must be 0 or 1")
    safer = int(row["safer_response_id"])
    texts = [text_field(row, f"response_{i}", where) for i in (safer, 1 - safer)]
    return ({"role": "user", "content": text_field(row, "prompt", where)},), texts
