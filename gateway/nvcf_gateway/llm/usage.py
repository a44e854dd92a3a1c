"""What a function says about the tokens of a call, read from its response on the way."""

from __future__ import annotations

import json
import re
from typing import Any

from nvcf_gateway.llm.token_limits import Tokens

EDGE_BYTES = 64 * 1024
"""Bytes at each end of a response in which its usage is looked for."""
MOST_TOKENS = 1_000_000_000
"""A larger count is none: no call has so many, and a debt of it would never end."""
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
# In a text of the model the quotes are escaped.
_USAGE = re.compile(rb'(?<!\\)"usage"\s*:\s*(\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\})')


def tokens_of(usage: Any) -> Tokens | None:
    """Return the tokens that a `usage` object counts, None if it is none."""
    if not isinstance(usage, dict):
        return None
    counts = [
        next(
            (
                count
                for name in names
                if isinstance(count := usage.get(name), int) and 0 <= count <= MOST_TOKENS
            ),
            None,
        )
        for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    ]
    if counts[0] is None and counts[1] is None:
        return None
    return Tokens(counts[0] or 0, counts[1] or 0)


class UsageReader:
    """Reads the usage of one response; with `hidden` the event that has nothing else does not pass."""

    def __init__(self, *, hidden: bool) -> None:
        self._hidden = hidden
        self._head = b""
        self._tail = b""
        self.usage: Tokens | None = None
        """The last usage that was said."""
        self.size = 0
        """Bytes of a body that is no event stream."""
        self.events = 0
        """Events that have passed: at least as many tokens, for an engine that sends each token."""

    def whole_events(self, data: bytes) -> bytes:
        """Read whole events, and return those that pass."""
        passed, at = [], 0
        for match in _EVENT_END.finditer(data):
            part = data[at : match.end()]
            at = match.end()
            if not self._read(part):
                passed.append(part)
        return b"".join((*passed, data[at:]))

    def body(self, data: bytes) -> None:
        """Read a part of a body that is no event stream."""
        self.size += len(data)
        room = EDGE_BYTES - len(self._head)
        self._head += data[:room]
        self._tail = (self._tail + data[room:])[-EDGE_BYTES:] if len(data) > room else self._tail

    def end(self) -> None:
        """Find the usage in a body that is no event stream."""
        found = _USAGE.findall(self._head + self._tail)
        if found and self.usage is None:
            self.usage = tokens_of(_json(found[-1]))

    def _read(self, event: bytes) -> bool:
        """Read one event; return whether it is hidden."""
        if b"data:" not in event:
            return False
        self.events += 1
        if b'"usage"' not in event:
            return False
        lines = event.splitlines()
        value = _json(b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:")))
        if not isinstance(value, dict):
            return False
        inner = value.get("response")
        said = tokens_of(value.get("usage"))
        if said is None and isinstance(inner, dict):
            said = tokens_of(inner.get("usage"))
        if said is None:
            return False
        self.usage = said
        hidden = self._hidden and value.get("choices") == []
        self.events -= hidden
        return hidden


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
