"""Lines that tritonserver writes. No I/O."""

from __future__ import annotations

import logging
import re

# E1201 11:35:00.123456 4711 model.cc:12] "text"
_LINE = re.compile(r"(?P<level>[IWEFV])\d{4} [\d:.]+ +\d+ (?P<text>.*)")
_LEVELS = {
    "V": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
}


def parse(line: str) -> tuple[int, str]:
    """Return level and text of a line. What models print has no level and is information."""
    match = _LINE.fullmatch(line)
    return (_LEVELS[match["level"]], match["text"]) if match else (logging.INFO, line)
