"""The collector's exporters: one for each endpoint and kind of telemetry.

Fields are those of the components' config structs in opentelemetry-collector 0.161 and its contrib
repository. They are older than that release, so other releases accept them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from nvcf_otel.byoo.providers import PRIVATE_CA_KEY, WHOLE, authentication, file_name
from nvcf_proto.models import (
    TelemetryAuth,
    TelemetryEndpoint,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetryType,
)

Config = dict[str, Any]

STORAGE = "file_storage"
# Requests of up to one batch each: hours of telemetry of one instance, minutes of a cluster's.
_QUEUE: Config = {"enabled": True, "num_consumers": 4, "queue_size": 2000, "storage": STORAGE}
_RETRY: Config = {
    "enabled": True,
    "initial_interval": "1s",
    "max_interval": "30s",
    "max_elapsed_time": "1h",
}
_TIMEOUT = "10s"


@dataclass(frozen=True)
class Exporter:
    """One exporter, with the extensions it refers to and the processors that must precede it."""

    id: str
    config: Config
    extensions: Mapping[str, Config] = field(default_factory=dict)
    processors: Mapping[str, Config] = field(default_factory=dict)


@dataclass(frozen=True)
class _Scene:
    endpoint: TelemetryEndpoint
    kind: TelemetryType
    secrets: PurePosixPath

    @property
    def name(self) -> str:
        return f"{self.endpoint.provider.value}-{self.endpoint.name}-{self.kind.value.lower()}"

    def path(self, key: str) -> str:
        return str(self.secrets / file_name(self.endpoint.secret_name, key))

    def reference(self, key: str) -> str:
        return f"${{file:{self.path(key)}}}"

    def headers(self, **more: str) -> Config:
        settings = self.endpoint.settings
        named = {header: self.reference(key) for header, key in settings.secret_headers.items()}
        headers = {**settings.headers, **named, **more}
        return {"headers": headers} if headers else {}

    def tls(self, mutual: bool) -> Config:
        tls: Config = {}
        if mutual:
            tls |= {"cert_file": self.path("clientCert"), "key_file": self.path("clientKey")}
        if self.endpoint.settings.private_ca:
            tls["ca_file"] = self.path(PRIVATE_CA_KEY)
        return {"tls": tls} if tls else {}

    def authenticated(self) -> tuple[Config, dict[str, Config]]:
        """Return the exporter's authentication members and extensions, as the endpoint asks for."""
        match authentication(self.endpoint):
            case TelemetryAuth.BEARER:
                return self.bearer("Bearer")
            case TelemetryAuth.BASIC:
                return self.basic("username", "password")
            case TelemetryAuth.MTLS:
                return self.tls(mutual=True), {}
            case TelemetryAuth.NONE:
                return self.tls(mutual=False), {}

    def bearer(self, scheme: str) -> tuple[Config, dict[str, Config]]:
        # Read literally, and again when the file changes. A `${file:...}` would be read once, as YAML.
        extension = f"bearertokenauth/{self.name}"
        config: Config = {"filename": self.path(WHOLE)}
        if scheme != "Bearer":
            config["scheme"] = scheme
        return {"auth": {"authenticator": extension}, **self.tls(mutual=False)}, {extension: config}

    def basic(self, user: str, password: str) -> tuple[Config, dict[str, Config]]:
        extension = f"basicauth/{self.name}"
        files = {"username_file": self.path(user), "password_file": self.path(password)}
        config: Config = {"client_auth": files}
        return {"auth": {"authenticator": extension}, **self.tls(mutual=False)}, {extension: config}


def exporter_of(endpoint: TelemetryEndpoint, kind: TelemetryType, secrets: PurePosixPath) -> Exporter:
    """Return the exporter of one kind of telemetry to an endpoint that has been validated."""
    return _BUILDERS[endpoint.provider](_Scene(endpoint, kind, secrets))


def _lasting() -> Config:
    return {"timeout": _TIMEOUT, "retry_on_failure": dict(_RETRY), "sending_queue": dict(_QUEUE)}


def _otlp(scene: _Scene, members: Config, extensions: Mapping[str, Config], **headers: str) -> Exporter:
    if scene.endpoint.protocol is TelemetryProtocol.GRPC:
        return _otlp_grpc(scene, members, extensions, headers)
    config = {
        "endpoint": scene.endpoint.endpoint.rstrip("/"),
        **members,
        **scene.headers(**headers),
        **_lasting(),
    }
    return Exporter(f"otlphttp/{scene.name}", config, extensions)


def _otlp_grpc(
    scene: _Scene, members: Config, extensions: Mapping[str, Config], headers: Mapping[str, str]
) -> Exporter:
    parts = urlsplit(scene.endpoint.endpoint)
    secure = parts.scheme == "https"
    address = parts.netloc if parts.port else f"{parts.netloc}:{443 if secure else 4317}"
    if not secure:
        members = {**members, "tls": {"insecure": True}}
    config = {"endpoint": address, **members, **scene.headers(**headers), **_lasting()}
    return Exporter(f"otlp/{scene.name}", config, extensions)


def _generic(scene: _Scene) -> Exporter:
    members, extensions = scene.authenticated()
    return _otlp(scene, members, extensions)


def _grafana(scene: _Scene) -> Exporter:
    members, extensions = scene.basic("instanceId", "apiKey")
    return _otlp(scene, members, extensions)


def _servicenow(scene: _Scene) -> Exporter:
    token = {"lightstep-access-token": scene.reference(WHOLE)}
    return _otlp(scene, scene.tls(mutual=False), {}, **token)


def _dynatrace(scene: _Scene) -> Exporter:
    members, extensions = scene.bearer("Api-Token")
    exporter = _otlp(scene, members, extensions)
    if scene.kind is not TelemetryType.METRICS:
        return exporter
    # It refuses sums whose start is the start of a process.
    delta: Config = {"cumulativetodelta": {}}
    return Exporter(exporter.id, exporter.config, exporter.extensions, delta)


def _kratos(scene: _Scene) -> Exporter:
    config = {
        f"{scene.kind.value.lower()}_endpoint": scene.endpoint.endpoint,
        **scene.tls(mutual=True),
        **scene.headers(**{"collector-id": scene.reference("collectorId")}),
        **_lasting(),
    }
    return Exporter(f"otlphttp/{scene.name}", config)


def _remote_write(scene: _Scene) -> Exporter:
    members, extensions = scene.authenticated()
    config = {
        "endpoint": scene.endpoint.endpoint,
        **members,
        **scene.headers(),
        "timeout": _TIMEOUT,
        "resource_to_telemetry_conversion": {"enabled": True},
        "retry_on_failure": dict(_RETRY),
        # This exporter has no queue on disk.
        "remote_write_queue": {"enabled": True, "queue_size": 10_000, "num_consumers": 5},
    }
    return Exporter(f"prometheusremotewrite/{scene.name}", config, extensions)


def _splunk(scene: _Scene) -> Exporter:
    config = {
        "endpoint": scene.endpoint.endpoint,
        "token": scene.reference(WHOLE),
        **scene.tls(mutual=False),
        **scene.headers(),
        **_lasting(),
    }
    return Exporter(f"splunk_hec/{scene.name}", config)


def _datadog(scene: _Scene) -> Exporter:
    config = {
        "api": {"site": scene.endpoint.endpoint, "key": scene.reference(WHOLE)},
        # The host of the collector does not belong to the account.
        "host_metadata": {"enabled": False},
        **_lasting(),
    }
    return Exporter(f"datadog/{scene.name}", config)


def _azure(scene: _Scene) -> Exporter:
    parts = {
        "InstrumentationKey": scene.reference("instrumentationKey"),
        "IngestionEndpoint": scene.endpoint.endpoint,
        "LiveEndpoint": scene.reference("liveEndpoint"),
        "ApplicationId": scene.reference("applicationId"),
    }
    config: Config = {
        "connection_string": ";".join(f"{name}={value}" for name, value in parts.items()),
        "sending_queue": dict(_QUEUE),
    }
    if scene.kind is TelemetryType.TRACES:
        config["spaneventsenabled"] = True
    return Exporter(f"azuremonitor/{scene.name}", config)


_BUILDERS: Mapping[TelemetryProvider, Callable[[_Scene], Exporter]] = {
    TelemetryProvider.OTEL_COLLECTOR: _generic,
    TelemetryProvider.PROMETHEUS: _remote_write,
    TelemetryProvider.VICTORIAMETRICS: _remote_write,
    TelemetryProvider.KRATOS_THANOS: _remote_write,
    TelemetryProvider.GRAFANA_CLOUD: _grafana,
    TelemetryProvider.DATADOG: _datadog,
    TelemetryProvider.SPLUNK: _splunk,
    TelemetryProvider.AZURE_MONITOR: _azure,
    TelemetryProvider.DYNATRACE: _dynatrace,
    TelemetryProvider.SERVICENOW: _servicenow,
    TelemetryProvider.KRATOS: _kratos,
}
