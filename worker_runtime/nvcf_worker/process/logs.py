"""Logging of a worker: JSON lines with request id and trace id, or readable lines on a terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, TextIO

from nvcf_otel.logs import JsonFormatter
from nvcf_otel.redaction import Redactor, of_environment

LOG_STREAM = "NVCF_LOG_STREAM"
"""[ext] Where log lines go: `stderr` or `stdout`. Default: stderr."""

request_id: ContextVar[str | None] = ContextVar("nvcf_worker_request_id", default=None)


def attach_trace(carrier: Mapping[str, str]) -> None:
    """Make the W3C trace context of NATS headers current in this task."""
    from opentelemetry import context

    from nvcf_otel import spans

    context.attach(spans.below(spans.parse(carrier)))


def current_trace_id() -> str | None:
    """Return the trace id of the current span; None if there is none or OpenTelemetry is not imported."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.trace_id else None


def current_trace() -> dict[str, str]:
    """Return the headers of the current span; empty if there is none or OpenTelemetry is not imported."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    from nvcf_otel import spans

    return spans.carrier(trace.get_current_span())


class Ids(logging.Filter):
    """Adds request id and trace id to a record, in the thread and task that made it."""

    def filter(self, record: logging.LogRecord) -> bool:
        # The logger of a request has set the id already.
        if getattr(record, "request_id", None) is None:
            record.request_id = request_id.get()
        record.trace_id = current_trace_id()
        return True


class TextFormatter(logging.Formatter):
    """Formats a record as time, level, request and text for people; secrets are replaced."""

    def __init__(self, redact: Redactor | None = None) -> None:
        super().__init__()
        self._redact = redact or Redactor()

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        request = getattr(record, "request_id", None)
        where = f" [{request[:8]}]" if request else ""
        line = f"{clock} {record.levelname.lower():7}{where} {record.getMessage()}"
        return self._redact(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)


def set_up(level: str, stream: TextIO | None = None) -> None:
    """Send all log records to `stream`, unless the function has configured logging itself.

    Default stream: NVCF_LOG_STREAM, `stderr` or `stdout`. Raises ValueError for an unknown level.
    """
    root = logging.getLogger()
    logging.getLogger("nvcf_worker").setLevel(level.upper())
    if root.handlers:
        return
    if stream is None:
        stream = sys.stdout if os.environ.get(LOG_STREAM, "").strip().lower() == "stdout" else sys.stderr
    redact = of_environment(os.environ)
    handler = logging.StreamHandler(stream)
    handler.addFilter(Ids())
    handler.setFormatter(
        TextFormatter(redact) if stream.isatty() else JsonFormatter(redact, extras=("request_id", "trace_id"))
    )
    root.addHandler(handler)
    root.setLevel(level.upper())
