"""The token usage in an engine's responses. No I/O.

Completions and embeddings have `usage` with `prompt_tokens` and `completion_tokens`; the routes of responses
have `input_tokens` and `output_tokens`, in streams inside `response` (OpenAI's API reference).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""Names of OpenTelemetry's conventions for generative AI, by route."""
MOST_TOKENS = 1_000_000_000
"""A larger count is none: metrics could not hold it."""
_MARK = b'"usage"'


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request: those of its prompt, and those of its response (None for embeddings)."""

    input: int
    output: int | None


def usage_of(body: bytes) -> Usage | None:
    """Return the usage of a JSON document, None if it has none."""
    if _MARK not in body:
        return None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    inner = document.get("response")
    found = document.get("usage") or (inner.get("usage") if isinstance(inner, dict) else None)
    return _usage(found) if isinstance(found, dict) else None


def usage_in_events(events: bytes) -> Usage | None:
    """Return the last usage in whole server-sent events, None if they have none."""
    if _MARK not in events:
        return None
    for line in reversed(events.splitlines()):
        if line.startswith(b"data:") and (found := usage_of(line[5:])) is not None:
            return found
    return None


def _usage(found: dict[str, Any]) -> Usage | None:
    given = _count(found.get("prompt_tokens", found.get("input_tokens")))
    made = _count(found.get("completion_tokens", found.get("output_tokens")))
    return None if given is None else Usage(given, made)


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
    return value if is_count else None
