"""Choose how an instance's telemetry reaches its endpoints: the SDK's exporters or a collector. Pure."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from nvcf_otel.byoo.providers import PRIVATE_CA_KEY, WHOLE, authentication, file_name
from nvcf_proto.models import (
    Telemetries,
    TelemetryAuth,
    TelemetryEndpoint,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetryType,
)

Read = Callable[[str], str]
"""Returns the content of a secret file by its name. Raises OSError."""
Path = Callable[[str], str]
"""Returns the path of a secret file by its name."""


@dataclass(frozen=True)
class Unknown:
    """The version names an endpoint that does not exist or does not accept this kind of telemetry."""

    kind: TelemetryType
    endpoint_id: str
    why: str


@dataclass(frozen=True)
class Plan:
    """Destination of each kind of telemetry. `direct`: no collector is needed."""

    endpoints: Mapping[TelemetryType, TelemetryEndpoint] = field(default_factory=dict)
    unknown: tuple[Unknown, ...] = ()

    @property
    def direct(self) -> bool:
        """Return whether the SDK's exporters can do it alone."""
        return all(is_direct(endpoint) for endpoint in self.endpoints.values())


def plan(
    telemetries: Telemetries | None,
    lookup: Callable[[str], TelemetryEndpoint | None],
    nca_id: str,
) -> Plan:
    """Return the plan for a version's choice of endpoints; `lookup` finds an endpoint by its id.

    An endpoint of another account than `nca_id` is treated as missing.
    """
    endpoints: dict[TelemetryType, TelemetryEndpoint] = {}
    unknown = []
    for kind, endpoint_id in (telemetries or Telemetries()).by_type().items():
        endpoint = lookup(endpoint_id)
        if endpoint is None or endpoint.nca_id != nca_id:
            unknown.append(Unknown(kind, endpoint_id, "there is no such telemetry endpoint"))
        elif kind not in endpoint.types:
            unknown.append(Unknown(kind, endpoint_id, f"{endpoint.name} does not take {kind.value}"))
        else:
            endpoints[kind] = endpoint
    return Plan(endpoints, tuple(unknown))


def is_direct(endpoint: TelemetryEndpoint) -> bool:
    """Return whether the SDK's exporters support everything the endpoint asks for."""
    settings = endpoint.settings
    return (
        endpoint.provider is TelemetryProvider.OTEL_COLLECTOR
        and not settings.allow_metrics
        and settings.sampled_percent in (None, 100)
    )


def direct_environment(
    endpoints: Mapping[TelemetryType, TelemetryEndpoint], read: Read, path: Path
) -> dict[str, str]:
    """Return OpenTelemetry's standard variables ("OTLP exporter configuration") for these endpoints.

    Each kind of telemetry has its own variables. A kind without an endpoint is switched off. Raises OSError
    when a secret cannot be read.
    """
    result = {}
    for kind in TelemetryType:
        endpoint = endpoints.get(kind)
        if endpoint is None:
            result[f"OTEL_{kind.value}_EXPORTER"] = "none"
            continue
        prefix = f"OTEL_EXPORTER_OTLP_{kind.value}_"
        is_grpc = endpoint.protocol is TelemetryProtocol.GRPC
        address = endpoint.endpoint.rstrip("/")
        result[prefix + "ENDPOINT"] = _grpc_address(address) if is_grpc else f"{address}/v1/{kind.lower()}"
        result[prefix + "PROTOCOL"] = "grpc" if is_grpc else "http/protobuf"
        headers = _headers(endpoint, read)
        if headers:
            # Values are encoded as in W3C baggage.
            pairs = (f"{name.lower()}={quote(value, safe='')}" for name, value in headers.items())
            result[prefix + "HEADERS"] = ",".join(pairs)
        result |= {prefix + name: value for name, value in _certificates(endpoint, path).items()}
    return result | _sampler(endpoints)


def _grpc_address(address: str) -> str:
    parts = urlsplit(address)
    if parts.port:
        return address
    return f"{address}:{443 if parts.scheme == 'https' else 4317}"


def _headers(endpoint: TelemetryEndpoint, read: Read) -> dict[str, str]:
    def secret(key: str) -> str:
        return read(file_name(endpoint.secret_name, key)).strip()

    settings = endpoint.settings
    headers = {**settings.headers, **{name: secret(key) for name, key in settings.secret_headers.items()}}
    match authentication(endpoint):
        case TelemetryAuth.BEARER:
            headers["authorization"] = f"Bearer {secret(WHOLE)}"
        case TelemetryAuth.BASIC:
            pair = f"{secret('username')}:{secret('password')}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return headers


def _certificates(endpoint: TelemetryEndpoint, path: Path) -> dict[str, str]:
    name = endpoint.secret_name
    files = {}
    if authentication(endpoint) is TelemetryAuth.MTLS:
        files["CLIENT_CERTIFICATE"] = path(file_name(name, "clientCert"))
        files["CLIENT_KEY"] = path(file_name(name, "clientKey"))
    if endpoint.settings.private_ca:
        files["CERTIFICATE"] = path(file_name(name, PRIVATE_CA_KEY))
    return files


def collector_environment(
    endpoints: Mapping[TelemetryType, TelemetryEndpoint], grpc_address: str
) -> dict[str, str]:
    """Return the standard variables that send the telemetry to a collector at `grpc_address` (host:port)."""
    result = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{grpc_address}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    result |= {f"OTEL_{kind.value}_EXPORTER": "none" for kind in TelemetryType if kind not in endpoints}
    return result | _sampler(endpoints)


def _sampler(endpoints: Mapping[TelemetryType, TelemetryEndpoint]) -> dict[str, str]:
    """Record all traces when the account wants all, or a collector decides after each trace has ended."""
    traces = endpoints.get(TelemetryType.TRACES)
    wanted = traces is not None and traces.settings.sampled_percent is not None
    return {"OTEL_TRACES_SAMPLER": "always_on"} if wanted else {}
