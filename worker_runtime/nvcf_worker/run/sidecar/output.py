"""What a server writes: its lines as records of the worker's log, and its last errors."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

log = logging.getLogger("nvcf_worker")

LONGEST_LINE = 256 * 1024
KEPT_LINES = 5
_KEPT_CHARACTERS = 1000

Parse = Callable[[str], tuple[int, str]]
"""Returns level and text of a line."""


class LastErrors:
    """The last lines that say what went wrong: errors, or the last lines of any level if there are none."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=KEPT_LINES)
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    def add(self, level: int, text: str) -> None:
        """Take one line."""
        (self._errors if level >= logging.ERROR else self._lines).append(text[:_KEPT_CHARACTERS])

    @property
    def text(self) -> str:
        """Return them as lines of one text."""
        return "\n".join(self._errors or self._lines)


async def log_lines(
    stream: asyncio.StreamReader, last: LastErrors, parse: Parse, target: logging.Logger
) -> None:
    """Log each line until the stream ends."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            log.warning("a line of more than %d bytes is left out", LONGEST_LINE)
            continue
        if not line:
            return
        if text := line.decode(errors="replace").strip():
            level, text = parse(text)
            last.add(level, text)
            target.log(level, "%s", text)
