"""Logging of a worker: JSON lines with request id and trace id, or readable lines on a terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from nvcf_otel.cleaning import writable
from nvcf_otel.logs import JsonFormatter
from nvcf_otel.redaction import Redactor, of_environment

LOG_STREAM = "NVCF_LOG_STREAM"
"""[ext] Where log lines go: `stderr` or `stdout`. Default: stderr."""

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"

request_id: ContextVar[str | None] = ContextVar("nvcf_worker_request_id", default=None)


def attach_trace(carrier: Mapping[str, str]) -> None:
    """Make the W3C trace context of NATS headers current in this task."""
    from opentelemetry import context

    from nvcf_otel import spans

    context.attach(spans.with_baggage(carrier, spans.below(spans.parse(carrier))))


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
    """Adds request id and trace id to a record, in the thread and task that made it.

    A traceback in the record begins at the function's own code.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            kind, error, trace = record.exc_info
            record.exc_info = (kind, error, users_frames(trace))
        # The logger of a request has set the id already.
        if getattr(record, "request_id", None) is None:
            record.request_id = request_id.get()
        record.trace_id = current_trace_id()
        return True


def users_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the worker's frames at its beginning, or all of it if it has no others."""
    first = trace
    while first is not None and first.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        first = first.tb_next
    return first or trace


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
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return writable(self._redact(line))


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
