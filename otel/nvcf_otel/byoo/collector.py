"""Configuration of the upstream OpenTelemetry Collector, as values and as YAML. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from nvcf_otel.byoo.exporters import STORAGE, Config, Exporter, exporter_of
from nvcf_otel.byoo.processors import (
    BATCH,
    batch,
    metrics_filter,
    resource,
    scrape_relabelling,
    tail_sampling,
)
from nvcf_proto.models import TelemetryEndpoint, TelemetryType

SECRETS_DIRECTORY = "/etc/byoo-otel-collector/secrets"
_HEADER = (
    "# Rendered by nvcf_otel.byoo for the OpenTelemetry Collector (contrib distribution).\n"
    "# No secrets in here: they are read from files.\n"
)


@dataclass(frozen=True)
class Placement:
    """Where a collector runs: beside one instance, or one for a cluster.

    `resource` attributes are added to all telemetry. `scrape` lists Prometheus endpoints as `host:port`,
    served at `/metrics`; only the platform's own metrics are kept of them. The ports are NVIDIA's.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 14357
    http_port: int = 14358
    health_port: int = 13133
    metrics_port: int = 18888
    secrets: str = SECRETS_DIRECTORY
    storage: str = "/var/lib/otelcol/queue"
    memory_mib: int = 256
    scrape: tuple[str, ...] = ()
    scrape_seconds: int = 30
    resource: Mapping[str, str] = field(default_factory=dict)


def collector_configuration(
    endpoints: Mapping[TelemetryType, TelemetryEndpoint], placement: Placement
) -> Config:
    """Return the configuration that sends each kind of telemetry to its endpoint.

    Raises ValueError without endpoints.
    """
    if not endpoints:
        raise ValueError("no telemetry endpoint: there is nothing to send anything to")
    processors: dict[str, Config] = {
        "memory_limiter": {
            "check_interval": "1s",
            "limit_mib": placement.memory_mib,
            "spike_limit_mib": placement.memory_mib // 5,
        }
    }
    extensions: dict[str, Config] = {
        "health_check": {"endpoint": f"{placement.host}:{placement.health_port}"},
        STORAGE: {"directory": placement.storage, "create_directory": True},
    }
    exporters: dict[str, Config] = {}
    pipelines: dict[str, Config] = {}
    secrets = PurePosixPath(placement.secrets)
    for kind in sorted(endpoints):
        exporter = exporter_of(endpoints[kind], kind, secrets)
        chosen = _processors(endpoints[kind], kind, placement, exporter)
        processors |= chosen
        extensions |= exporter.extensions
        exporters[exporter.id] = exporter.config
        scraped = kind is TelemetryType.METRICS and bool(placement.scrape)
        pipelines[kind.value.lower()] = {
            "receivers": ["otlp", "prometheus"] if scraped else ["otlp"],
            "processors": ["memory_limiter", *chosen],
            "exporters": [exporter.id],
        }
    return {
        "extensions": extensions,
        "receivers": _receivers(placement, scraping=TelemetryType.METRICS in endpoints),
        "processors": processors,
        "exporters": exporters,
        "service": {
            "extensions": list(extensions),
            "telemetry": _own_telemetry(placement),
            "pipelines": pipelines,
        },
    }


def _processors(
    endpoint: TelemetryEndpoint, kind: TelemetryType, placement: Placement, exporter: Exporter
) -> dict[str, Config]:
    """Return the processors of one pipeline behind the memory limiter, in order."""
    chosen: dict[str, Config] = {}
    if kind is TelemetryType.METRICS:
        chosen |= metrics_filter(endpoint.settings.allow_metrics)
    if kind is TelemetryType.TRACES:
        chosen |= tail_sampling(endpoint.settings)
    return {**chosen, **resource(placement.resource), **exporter.processors, BATCH: batch()}


def _receivers(placement: Placement, *, scraping: bool) -> Config:
    receivers: Config = {
        "otlp": {
            "protocols": {
                "grpc": {"endpoint": f"{placement.host}:{placement.grpc_port}"},
                "http": {"endpoint": f"{placement.host}:{placement.http_port}"},
            }
        }
    }
    if scraping and placement.scrape:
        receivers["prometheus"] = {
            "config": {
                "scrape_configs": [
                    {
                        "job_name": "nvcf",
                        "scrape_interval": f"{placement.scrape_seconds}s",
                        "scrape_timeout": f"{max(1, placement.scrape_seconds - 5)}s",
                        "static_configs": [{"targets": list(placement.scrape)}],
                        "metric_relabel_configs": scrape_relabelling(),
                    }
                ]
            }
        }
    return receivers


def _own_telemetry(placement: Placement) -> Config:
    prometheus = {"host": placement.host, "port": placement.metrics_port}
    return {
        "logs": {"level": "warn"},
        "metrics": {"level": "normal", "readers": [{"pull": {"exporter": {"prometheus": prometheus}}}]},
    }


def collector_text(endpoints: Mapping[TelemetryType, TelemetryEndpoint], placement: Placement) -> str:
    """Return the configuration as YAML. Raises ValueError without endpoints, ImportError without PyYAML."""
    return _HEADER + yaml_text(collector_configuration(endpoints, placement))


def yaml_text(value: Any) -> str:
    """Return plain values as YAML in block style, members in order. Raises ImportError without PyYAML."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            # Lists are indented below their key.
            super().increase_indent(flow, False)

    return yaml.dump(value, Dumper=Dumper, sort_keys=False, width=1000, allow_unicode=False)
