"""Logs: JSON lines for machines, short lines on a terminal; always on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any, TextIO

from nvcf_otel.cleaning import shown, writable
from nvcf_otel.redaction import Redactor, of_environment

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _extras(record: logging.LogRecord, names: Collection[str] | None = None) -> dict[str, Any]:
    if names is not None:
        return {name: value for name in names if (value := getattr(record, name, None)) is not None}
    return {key: value for key, value in vars(record).items() if key not in _STANDARD and value is not None}


def _json(line: Mapping[str, Any]) -> str:
    """Return a line of JSON that every stream can carry, whatever is in it."""
    try:
        text = json.dumps(line, ensure_ascii=False, default=shown, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        # E.g. NaN, keys that are no texts, or an object that contains itself.
        text = json.dumps({key: shown(value) for key, value in line.items()}, ensure_ascii=False)
    # The escape is one of JSON, too.
    return writable(text)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time (UTC), level, logger, message, `fixed` members, extras.

    `extras` names the extras to show; None shows all of them. Secrets in texts are replaced.
    """

    def __init__(
        self, redact: Redactor | None = None, *, extras: Collection[str] | None = None, **fixed: str
    ) -> None:
        super().__init__()
        self._redact = redact or Redactor()
        self._extras = extras
        self._fixed = fixed

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._redact(record.getMessage()),
            **self._fixed,
            **{
                key: self._redact(value) if isinstance(value, str) else value
                for key, value in _extras(record, self._extras).items()
            },
        }
        if record.exc_info:
            line["exception"] = self._redact(self.formatException(record.exc_info))
        return _json(line)


class TerminalFormatter(logging.Formatter):
    """Time of day, level and message; extras behind it. Secrets are replaced."""

    def __init__(self, redact: Redactor | None = None) -> None:
        super().__init__()
        self._redact = redact or Redactor()

    def format(self, record: logging.LogRecord) -> str:
        extras = " ".join(f"{key}={value}" for key, value in _extras(record).items())
        line = f"{_time(record)[11:23]} {record.levelname:<7} {record.getMessage()}"
        if extras:
            line = f"{line}  [{extras}]"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return writable(self._redact(line))


def configure_logging(level: str = "INFO", *, stream: TextIO | None = None, **fixed: str) -> None:
    """Send the root logger's records to `stream` (standard error), replacing earlier handlers.

    `fixed` members, e.g. `component="gateway"`, are part of every JSON line.
    """
    target = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(target)
    redact = of_environment(os.environ)
    handler.setFormatter(TerminalFormatter(redact) if target.isatty() else JsonFormatter(redact, **fixed))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
