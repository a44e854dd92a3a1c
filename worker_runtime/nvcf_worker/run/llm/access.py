"""Which of an engine's HTTP calls a function's callers may make. No I/O."""

from __future__ import annotations

import json
import re

from nvcf_worker.function.response import Reply

_ID = r"[^/%]+(/[^/%]+)*"
"""The name of a model. Encoded characters are left out: an engine may decode `%2e%2e%2f`."""
_ROUTES = re.compile(
    r"/v1/(chat/completions|completions|responses|embeddings|rerank|score|classify"
    rf"|audio/(speech|transcriptions|translations)|models(/{_ID})?)"
    r"|/(health|tokenize|detokenize)"
)
_LONGEST_PATH = 200


def refusal(method: str, target: str, opened: frozenset[str]) -> Reply | None:
    """Return OpenAI's answer for an unknown path, or None if a call is passed on.

    Only known paths are passed on: engines have others, which change the engine for everybody, e.g. unload
    adapters or clear caches. opened: more paths that callers may use.
    """
    path = target.partition("?")[0]
    if path in opened or (_ROUTES.fullmatch(path) and ".." not in path):
        return None
    message = f"Unknown request URL: {method} {path[:_LONGEST_PATH]}. This function serves OpenAI's routes."
    return Reply(404, [("content-type", "application/json")], error_body(message, "unknown_url"))


def error_body(message: str, code: str, kind: str = "invalid_request_error") -> bytes:
    """Return OpenAI's error object."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json.dumps({"error": error}).encode()
