"""Create OpenTelemetry's own OTLP exporters from settings. Imports the SDK where it is used."""

from __future__ import annotations

import importlib
import importlib.util
import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nvcf_otel.delivery import Reports
from nvcf_otel.settings import Export, Protocol

_GRPC_LOGGER = "opentelemetry.exporter.otlp.proto.grpc.exporter"
_HTTP_LOGGER = "opentelemetry.exporter.otlp.proto.http."
_CLASSES = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
    "logs": ("_log_exporter", "OTLPLogExporter"),
}
_INTERNAL_NAMES = (".svc", ".local", ".internal", ".localhost")


def available(protocol: Protocol) -> bool:
    """Return whether the exporters for a protocol are installed."""
    kind = "grpc" if protocol is Protocol.GRPC else "http"
    return importlib.util.find_spec(f"opentelemetry.exporter.otlp.proto.{kind}") is not None


def maker(signal: str, export: Export, **more: Any) -> Callable[[], Any]:
    """Return what opens the exporter for `traces`, `metrics` or `logs`; `more` are further arguments."""
    if export.protocol is Protocol.GRPC:
        return lambda: _class("grpc", signal)(**_grpc_arguments(export), **more)
    return lambda: _class("http", signal)(**_http_arguments(export), **more)


def is_internal(endpoint: str) -> bool:
    """Return whether a collector is on this machine or in its cluster, to be reached without a proxy.

    That is a private or loopback address, a name without a dot, or one of a cluster or a local network.
    """
    host = (urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").hostname or "").rstrip(".")
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_private
    except ValueError:
        return "." not in host or host.endswith(_INTERNAL_NAMES)


def _class(protocol: str, signal: str) -> Any:
    module, name = _CLASSES[signal]
    return getattr(importlib.import_module(f"opentelemetry.exporter.otlp.proto.{protocol}.{module}"), name)


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
    if is_internal(export.endpoint):
        arguments["channel_options"] = (("grpc.enable_http_proxy", 0),)
    if not export.insecure:
        arguments["credentials"] = grpc.ssl_channel_credentials(
            _bytes(export.certificate), _bytes(export.client_key), _bytes(export.client_certificate)
        )
    return arguments


def _http_arguments(export: Export) -> dict[str, Any]:
    import requests
    from opentelemetry.exporter.otlp.proto.http import Compression

    session = requests.Session()
    session.trust_env = not is_internal(export.endpoint)
    return {
        "session": session,
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
    """Stores what exporters log at each attempt as the reason that `Reports` logs once."""

    def __init__(self, reports: Reports) -> None:
        super().__init__(logging.WARNING)
        self._reports = reports

    def emit(self, record: logging.LogRecord) -> None:
        """Store the reason."""
        self._reports.reason = record.getMessage()[:500]


def quieten(signal: str, export: Export, reports: Reports) -> Callable[[], None]:
    """Send an exporter's log records only to `reports`, until the returned function is called."""
    name = _GRPC_LOGGER if export.protocol is Protocol.GRPC else _HTTP_LOGGER + _CLASSES[signal][0]
    logger, reasons = logging.getLogger(name), Reasons(reports)
    logger.propagate = False
    logger.addHandler(reasons)

    def undo() -> None:
        logger.removeHandler(reasons)
        logger.propagate = not logger.handlers

    return undo
