#!/usr/bin/env python3
"""Write otel/examples/*.yaml: the collector's configuration for each provider. `--check` only compares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from nvcf_otel.byoo import PROVIDERS, Placement, check_endpoint, collector_text
from nvcf_proto.models import (
    TelemetryAuth,
    TelemetryEndpoint,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetrySecret,
    TelemetrySettings,
    TelemetryType,
)

FOLDER = Path(__file__).parents[1] / "otel" / "examples"
_ID = "00000000-0000-4000-8000-00000000000"

SIDECAR = Placement(
    scrape=("127.0.0.1:8080",),
    resource={
        "nvcf.function.id": _ID + "1",
        "nvcf.function.version.id": _ID + "2",
        "nvcf.instance.id": _ID + "3",
        "nvcf.function.name": "hello",
        "nvcf.cluster.id": "local",
    },
)
CLUSTER = Placement(
    host="0.0.0.0",  # noqa: S104
    memory_mib=1024,
    scrape=("gateway.nvcf.svc:9464", "autoscaler.nvcf.svc:9464", "agent.nvcf.svc:9464"),
    resource={"nvcf.cluster.id": "gpu-one"},
)


def endpoint(
    provider: TelemetryProvider,
    name: str,
    *,
    address: str | None = None,
    protocol: TelemetryProtocol = TelemetryProtocol.HTTP,
    secret: str | None = "",
    settings: TelemetrySettings | None = None,
) -> TelemetryEndpoint:
    """An endpoint of a provider that takes all the provider does."""
    about = PROVIDERS[provider]
    made = TelemetryEndpoint(
        id=_ID + "9",
        name=name,
        nca_id="account-one",
        endpoint=address or about.example,
        protocol=protocol,
        provider=provider,
        types=tuple(sorted(about.types)),
        created_at=0.0,
        secret=None if secret is None else TelemetrySecret(secret or name),
        settings=settings or TelemetrySettings(),
    )
    check_endpoint(made)
    return made


def _everything(made: TelemetryEndpoint) -> dict[TelemetryType, TelemetryEndpoint]:
    return dict.fromkeys(made.types, made)


def examples() -> Iterator[tuple[str, str]]:
    """File names and texts."""
    names = {
        TelemetryProvider.OTEL_COLLECTOR: "otlp-http",
        TelemetryProvider.KRATOS_THANOS: "kratos-thanos",
    }
    for provider in TelemetryProvider:
        name = names.get(provider, provider.value.lower().replace("_", "-"))
        yield f"{name}.yaml", collector_text(_everything(endpoint(provider, f"{name}-prod")), SIDECAR)
    grpc = endpoint(
        TelemetryProvider.OTEL_COLLECTOR,
        "internal",
        address="http://otel-collector.monitoring.svc:4317",
        protocol=TelemetryProtocol.GRPC,
        secret=None,
        settings=TelemetrySettings(headers={"x-scope-orgid": "team-one"}),
    )
    yield "otlp-grpc.yaml", collector_text(_everything(grpc), SIDECAR)
    vendor = endpoint(
        TelemetryProvider.OTEL_COLLECTOR,
        "vendor",
        address="https://ingest.example.com/otlp",
        settings=TelemetrySettings(
            auth=TelemetryAuth.MTLS,
            secret_headers={"x-ingest-key": "ingestKey"},
            private_ca=True,
            allow_metrics=("my_app_.*", r"vllm:.*"),
            sampled_percent=10.0,
            slow_seconds=2.5,
        ),
    )
    yield "vendor-by-configuration.yaml", collector_text(_everything(vendor), SIDECAR)
    mixed = {
        TelemetryType.LOGS: endpoint(TelemetryProvider.SPLUNK, "splunk-prod"),
        TelemetryType.METRICS: endpoint(TelemetryProvider.PROMETHEUS, "prometheus-prod"),
        TelemetryType.TRACES: endpoint(
            TelemetryProvider.GRAFANA_CLOUD,
            "grafana-prod",
            settings=TelemetrySettings(sampled_percent=5.0),
        ),
    }
    yield "mixed.yaml", collector_text(mixed, SIDECAR)
    yield "cluster.yaml", collector_text(_everything(grpc), CLUSTER)


def main() -> int:
    """Exit code 1 when something differs from what is on disk and `--check` was given."""
    check = "--check" in sys.argv[1:]
    wanted = dict(examples())
    stale = [path.name for path in FOLDER.glob("*.yaml") if path.name not in wanted]
    for name, text in wanted.items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                FOLDER.mkdir(exist_ok=True)
                path.write_text(text)
    if check and stale:
        print(f"out of date in otel/examples: {', '.join(sorted(stale))}; run {sys.argv[0]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
