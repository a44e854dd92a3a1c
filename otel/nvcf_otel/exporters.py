"""OpenTelemetry's own OTLP exporters, made from settings. Imports the SDK where it is used."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvcf_otel.delivery import Reports
from nvcf_otel.settings import Export, Protocol

_GRPC_LOGGER = "opentelemetry.exporter.otlp.proto.grpc.exporter"
_HTTP_LOGGERS = {
    "traces": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "metrics": "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "logs": "opentelemetry.exporter.otlp.proto.http._log_exporter",
}


def available(protocol: Protocol) -> bool:
    """Whether the exporters for a protocol are installed."""
    kind = "grpc" if protocol is Protocol.GRPC else "http"
    return importlib.util.find_spec(f"opentelemetry.exporter.otlp.proto.{kind}") is not None


def maker(signal: str, export: Export, **more: Any) -> Callable[[], Any]:
    """What opens the exporter for `traces`, `metrics` or `logs`; `more` goes to it as it is."""
    if export.protocol is Protocol.GRPC:
        return lambda: _grpc_class(signal)(**_grpc_arguments(export), **more)
    return lambda: _http_class(signal)(**_http_arguments(export), **more)


def _grpc_class(signal: str) -> Any:
    if signal == "traces":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter
    if signal == "metrics":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter

    return OTLPLogExporter


def _http_class(signal: str) -> Any:
    if signal == "traces":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter
    if signal == "metrics":
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

    return OTLPLogExporter


def _grpc_arguments(export: Export) -> dict[str, Any]:
    import grpc

    compression = grpc.Compression.Gzip if export.gzip else grpc.Compression.NoCompression
    arguments: dict[str, Any] = {
        "endpoint": export.endpoint,
        "insecure": export.insecure,
        "headers": tuple(export.headers.items()) or None,
        "timeout": export.timeout,
        "compression": compression,
    }
    if not export.insecure:
        arguments["credentials"] = grpc.ssl_channel_credentials(
            _bytes(export.certificate), _bytes(export.client_key), _bytes(export.client_certificate)
        )
    return arguments


def _http_arguments(export: Export) -> dict[str, Any]:
    from opentelemetry.exporter.otlp.proto.http import Compression

    return {
        "endpoint": export.endpoint,
        "headers": dict(export.headers),
        "timeout": export.timeout,
        "compression": Compression.Gzip if export.gzip else Compression.NoCompression,
        "certificate_file": export.certificate,
        "client_key_file": export.client_key,
        "client_certificate_file": export.client_certificate,
    }


def _bytes(path: str | None) -> bytes | None:
    return Path(path).read_bytes() if path else None


class Reasons(logging.Handler):
    """Takes what exporters log, which is a line for each try, as reasons; `Reports` says it once."""

    def __init__(self, reports: Reports) -> None:
        super().__init__(logging.WARNING)
        self._reports = reports

    def emit(self, record: logging.LogRecord) -> None:
        """Remember it."""
        self._reports.reason = record.getMessage()[:500]


def quieten(signal: str, export: Export, reports: Reports) -> Callable[[], None]:
    """Let an exporter's complaints go nowhere but into `reports`, until the result is called."""
    name = _GRPC_LOGGER if export.protocol is Protocol.GRPC else _HTTP_LOGGERS[signal]
    logger, reasons = logging.getLogger(name), Reasons(reports)
    logger.propagate = False
    logger.addHandler(reasons)

    def undo() -> None:
        logger.removeHandler(reasons)
        logger.propagate = not logger.handlers

    return undo
