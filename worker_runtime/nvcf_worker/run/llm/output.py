"""Lines that LLM engines write. No I/O."""

from __future__ import annotations

import logging
import re

# llama.cpp: "0.03.051.623 I slot print_timing: ..."; vLLM: "INFO 12-01 ..."; SGLang: "[2026-12-01 ...] ..."
_LLAMA = re.compile(r"[\d.]+ (?P<level>[DIWE]) (?P<text>.*)")
_WORD = re.compile(r"\b(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)\b")
_LEVELS = {
    "D": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "C": logging.CRITICAL,
    "F": logging.CRITICAL,
}
_HEAD = 80
"""Characters of a line in which its level stands."""


def parse(line: str) -> tuple[int, str]:
    """Return level and text of a line. One without a level is information."""
    if match := _LLAMA.fullmatch(line):
        return _LEVELS[match["level"]], match["text"]
    found = _WORD.search(line[:_HEAD])
    return (_LEVELS[found[1][0]] if found else logging.INFO), line
