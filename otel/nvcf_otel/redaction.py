"""Remove secrets from texts that leave the process: known values, and patterns of secrets. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

REDACTED = "[redacted]"

SECRET_VARIABLES = (
    "NVCF_WORKER_TOKEN",
    "NKEY_SEED",
    "SECRETS_ASSERTION_TOKEN",
    "NVCF_API_KEY",
    "NGC_API_KEY",
)
"""Environment variables whose values are secrets."""

_SHORTEST = 8
# Each part begins with fixed text or ends at the first character that is not its own: texts may be long,
# and the time must not grow with the square of their length.
_LIKELY = re.compile(
    r"(?P<keep>\b(?:bearer|basic|token|nkey)\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|(?P<name>(?:password|passwd|secret|token|api[_-]?key|authorization|private[_-]?key)"
    r"[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token|nkey)\s++)?+)(?!\[redacted\])[^\s\"',;&}\])]{4,}"
    r"|(?P<user>://[^\s/:@]*:)[^\s/@]+(?=@)"
    r"|\b(?-i:eyJ)[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*){0,2}"
    r"|\bnvapi-[A-Za-z0-9_-]{8,}"
    r"|\bS[ACNOU][A-Z2-7]{56}\b",
    re.IGNORECASE,
)
# Without any of these no pattern can match. Most texts are done after this test.
_HINT = re.compile(r"[:=]|eyJ|nvapi-|bearer|basic|token|nkey|\bS[ACNOU][A-Z2-7]{56}", re.IGNORECASE)


class Redactor:
    """Replaces `known` values, and what looks like a token, password or key."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        values = sorted({value for value in known if len(value) >= _SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, values))) if values else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        return _LIKELY.sub(_replaced, text) if _HINT.search(text) else text


def _replaced(match: re.Match[str]) -> str:
    return (match["keep"] or match["name"] or match["user"] or "") + REDACTED


def of_environment(environ: Mapping[str, str]) -> Redactor:
    """Return a Redactor that knows the secrets of an environment."""
    headers = [
        value
        for name, text in environ.items()
        if name.startswith("OTEL_EXPORTER_OTLP") and name.endswith("HEADERS")
        for value in _header_values(text)
    ]
    return Redactor([*(environ.get(name, "") for name in SECRET_VARIABLES), *headers])


def _header_values(text: str) -> list[str]:
    from urllib.parse import unquote

    found = []
    for part in text.split(","):
        _, _, value = part.partition("=")
        plain = unquote(value.strip())
        found += [value.strip(), plain, plain.rpartition(" ")[2]]
    return found
