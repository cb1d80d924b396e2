"""From queries and responses to rows in the record format."""

from typing import Any

from .folder import DataFolder, Query, Response


def candidates(folder: DataFolder) -> list[dict[str, Any]]:
    """A row of each query, whether it has all its responses or not; nothing is judged here.

    Returns:
        Rows of the record format (`id`, `domain`, `persona`, `query`, `responses`, best level first),
        with `provenance` and, for cleaning, `finish_reasons`: of the `query`, and of each level.
    """
    responses = folder.responses()
    return [_row(folder, query, responses.get(query.id, {})) for query in folder.queries()]


def _row(folder: DataFolder, query: Query, responses: dict[str, Response]) -> dict[str, Any]:
    there = {level: responses[level] for level in folder.domain.levels if level in responses}
    asked = query.made or {}
    answered = [response.made for response in there.values()]
    first = answered[0] if answered else {}
    reasons = {level: response.made["finish_reason"] for level, response in there.items()}
    return {
        "id": query.id,
        "domain": folder.domain.name,
        "persona": query.persona.persona,
        "query": query.query,
        "responses": {level: response.text for level, response in there.items()},
        "provenance": {
            "persona_source": query.persona.source,
            "query_model": asked.get("model"),
            "query_prompt": asked.get("prompt"),
            "response_model": first.get("model"),
            "response_prompt": first.get("prompt"),
            "date": max((made["date"] for made in (asked, *answered) if made), default=None),
        },
        "finish_reasons": {"query": asked.get("finish_reason"), **reasons},
    }
