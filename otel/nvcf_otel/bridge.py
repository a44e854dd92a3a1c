"""Forward records of Python's logging to OpenTelemetry, with secrets removed."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from opentelemetry._logs import LoggerProvider, SeverityNumber, get_logger
from opentelemetry.context import get_current

from nvcf_otel import names
from nvcf_otel.cleaning import shown
from nvcf_otel.redaction import Redactor

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_RENAMED = {"request_id": names.REQUEST_ID}
_LEFT_OUT = frozenset(("trace_id", "span_id"))
# Logs of the exporters themselves: exporting them would make new ones without end.
_OURS = ("opentelemetry", "grpc._", "urllib3")


def severity(level: int) -> SeverityNumber:
    """Return OpenTelemetry's severity number for a level of `logging`."""
    if level < logging.DEBUG:
        return SeverityNumber.TRACE
    if level < logging.INFO:
        return SeverityNumber.DEBUG
    if level < logging.WARNING:
        return SeverityNumber.INFO
    if level < logging.ERROR:
        return SeverityNumber.WARN
    return SeverityNumber.ERROR if level < logging.CRITICAL else SeverityNumber.FATAL


class Bridge(logging.Handler):
    """Logging handler that emits records to a logger provider, in the trace context of the code that logs."""

    def __init__(self, provider: LoggerProvider, redactor: Redactor) -> None:
        super().__init__()
        self._provider = provider
        self._redact = redactor

    def emit(self, record: logging.LogRecord) -> None:
        """Emit one record. Errors are handled as logging's own handlers do, never raised."""
        if record.name.startswith(_OURS):
            return
        try:
            number = severity(record.levelno)
            get_logger(record.name, logger_provider=self._provider).emit(
                timestamp=int(record.created * 1e9),
                context=get_current(),
                severity_number=number,
                severity_text=number.name,
                body=self._redact(record.getMessage()),
                attributes=self._attributes(record),
            )
        except Exception:  # noqa: BLE001 - as logging's own handlers
            self.handleError(record)

    def _attributes(self, record: logging.LogRecord) -> dict[str, Any]:
        found: dict[str, Any] = {"code.function.name": record.funcName, "code.line.number": record.lineno}
        for key, value in vars(record).items():
            if key not in _STANDARD and key not in _LEFT_OUT and value is not None:
                plain = value if isinstance(value, bool | int | float) else self._redact(shown(value))
                found[_RENAMED.get(key, key)] = plain
        if record.exc_info and record.exc_info[0] is not None:
            found["exception.type"] = record.exc_info[0].__name__
            found["exception.message"] = self._redact(shown(record.exc_info[1]))
            found["exception.stacktrace"] = self._redact(
                "".join(traceback.format_exception(*record.exc_info))
            )
        return found
