"""What each provider accepts, how it is addressed and which secrets it needs.

Names of secret files are those of NVIDIA's collector: NAME-KEY for each key of a secret, NAME for a secret
that is one value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import (
    TelemetryAuth,
    TelemetryEndpoint,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetryType,
)

WHOLE = ""
"""Key of a secret that is one value."""

AUTH_KEYS: Mapping[TelemetryAuth, tuple[str, ...]] = {
    TelemetryAuth.NONE: (),
    TelemetryAuth.BEARER: (WHOLE,),
    TelemetryAuth.BASIC: ("username", "password"),
    TelemetryAuth.MTLS: ("clientCert", "clientKey"),
}
PRIVATE_CA_KEY = "caFile"

_ALL = frozenset(TelemetryType)
_METRICS = frozenset((TelemetryType.METRICS,))
_HTTP = frozenset((TelemetryProtocol.HTTP,))
_BOTH = frozenset(TelemetryProtocol)
# Their exporters use a client that cannot be configured.
_OWN_CLIENT = (TelemetryProvider.DATADOG, TelemetryProvider.AZURE_MONITOR)
_HOST = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?(:[0-9]{1,5})?")


@dataclass(frozen=True)
class Provider:
    """One provider. `auth` is the way of authentication when the endpoint names none.

    With `keys` the authentication is fixed and needs these keys of the secret. `referenced`: they are part of
    the exporter's own configuration.
    """

    types: frozenset[TelemetryType]
    protocols: frozenset[TelemetryProtocol]
    example: str
    auth: TelemetryAuth = TelemetryAuth.NONE
    keys: tuple[str, ...] = ()
    referenced: bool = True
    is_host: bool = False


PROVIDERS: Mapping[TelemetryProvider, Provider] = {
    TelemetryProvider.OTEL_COLLECTOR: Provider(
        _ALL, _BOTH, "https://collector.example.com:4318", auth=TelemetryAuth.BEARER
    ),
    TelemetryProvider.PROMETHEUS: Provider(
        _METRICS, _HTTP, "https://prometheus.example.com/api/v1/write", auth=TelemetryAuth.MTLS
    ),
    TelemetryProvider.VICTORIAMETRICS: Provider(
        _METRICS, _HTTP, "https://vm.example.com/api/v1/write", auth=TelemetryAuth.BASIC
    ),
    TelemetryProvider.KRATOS_THANOS: Provider(
        _METRICS, _HTTP, "https://thanos.example.com/api/v1/receive", auth=TelemetryAuth.MTLS
    ),
    TelemetryProvider.GRAFANA_CLOUD: Provider(
        _ALL,
        _HTTP,
        "https://otlp-gateway-prod-eu-west-2.grafana.net/otlp",
        keys=("instanceId", "apiKey"),
        referenced=False,
    ),
    TelemetryProvider.DATADOG: Provider(_ALL, _HTTP, "datadoghq.com", keys=(WHOLE,), is_host=True),
    TelemetryProvider.SPLUNK: Provider(
        frozenset((TelemetryType.LOGS, TelemetryType.METRICS)),
        _HTTP,
        "https://splunk.example.com:8088/services/collector",
        keys=(WHOLE,),
    ),
    TelemetryProvider.AZURE_MONITOR: Provider(
        _ALL,
        _HTTP,
        "https://westeurope-1.in.applicationinsights.azure.com/",
        keys=("instrumentationKey", "applicationId", "liveEndpoint"),
    ),
    TelemetryProvider.DYNATRACE: Provider(
        _ALL, _HTTP, "https://abc12345.live.dynatrace.com/api/v2/otlp", keys=(WHOLE,), referenced=False
    ),
    TelemetryProvider.SERVICENOW: Provider(_ALL, _BOTH, "https://ingest.lightstep.com:443", keys=(WHOLE,)),
    TelemetryProvider.KRATOS: Provider(
        frozenset((TelemetryType.LOGS,)),
        _HTTP,
        "https://kratos.example.com/v1/logs",
        keys=("collectorId", "clientCert", "clientKey"),
    ),
}


def authentication(endpoint: TelemetryEndpoint) -> TelemetryAuth:
    """Return the way of authentication where the provider leaves that open."""
    if endpoint.settings.auth is not None:
        return endpoint.settings.auth
    return TelemetryAuth.NONE if endpoint.secret is None else PROVIDERS[endpoint.provider].auth


def secret_keys(endpoint: TelemetryEndpoint) -> tuple[str, ...]:
    """Return the keys that the endpoint's secret must have; `WHOLE` for a secret that is one value."""
    keys = [*(PROVIDERS[endpoint.provider].keys or AUTH_KEYS[authentication(endpoint)])]
    keys += endpoint.settings.secret_headers.values()
    if endpoint.settings.private_ca:
        keys.append(PRIVATE_CA_KEY)
    return tuple(dict.fromkeys(keys))


def file_name(secret: str, key: str) -> str:
    """Return the name of the file that holds one key of a secret."""
    return f"{secret}-{key}" if key else secret


def account_folder(nca_id: str) -> str:
    """Return the name of an account's folder of secret files: its id, with special characters as %XX."""
    name = quote(nca_id, safe="")
    return name if name.strip(".") else name.replace(".", "%2E") or "%"


def secret_files(endpoint: TelemetryEndpoint) -> tuple[str, ...]:
    """Return the names of the files that must exist before anything can be sent to the endpoint."""
    if endpoint.secret is None:
        return ()
    return tuple(file_name(endpoint.secret_name, key) for key in secret_keys(endpoint))


def referenced_files(endpoint: TelemetryEndpoint) -> frozenset[str]:
    """Return the secret files that a collector's configuration refers to by `${file:...}`.

    The collector reads these as YAML, in which `$` begins a reference and `$$` is a dollar sign, and keeps a
    line end at their end; see `as_referenced`. It reads the other files literally.
    """
    provider = PROVIDERS[endpoint.provider]
    keys = {*endpoint.settings.secret_headers.values(), *(provider.keys if provider.referenced else ())}
    keys -= set(AUTH_KEYS[TelemetryAuth.MTLS])
    return frozenset(file_name(endpoint.secret_name, key) for key in keys)


def as_referenced(secret: str) -> str:
    """Return a secret's text as it must be written into a file that is referred to."""
    return secret.strip().replace("$", "$$")


def check_endpoint(endpoint: TelemetryEndpoint) -> None:
    """Check that the provider supports the endpoint. Raises InvalidRecord that names the field."""
    provider = PROVIDERS[endpoint.provider]
    name = endpoint.provider.value
    for index, kind in enumerate(endpoint.types):
        if kind not in provider.types:
            raise InvalidRecord(f"types[{index}]", f"{name} takes {_listed(provider.types)} only")
    if endpoint.protocol not in provider.protocols:
        raise InvalidRecord("protocol", f"{name} is spoken to over {_listed(provider.protocols)} only")
    _check_address(endpoint, provider)
    if provider.keys and endpoint.settings.auth is not None:
        raise InvalidRecord("configuration.auth", f"{name} has its own way; leave auth out")
    if secret_keys(endpoint) and endpoint.secret is None:
        raise InvalidRecord(
            "secret", f"give the name of a secret with {_needed(secret_keys(endpoint))} in it"
        )
    if endpoint.provider in _OWN_CLIENT and (
        endpoint.settings.headers or endpoint.settings.secret_headers or endpoint.settings.private_ca
    ):
        raise InvalidRecord("configuration", f"{name} takes neither headers nor a certificate authority")


def _check_address(endpoint: TelemetryEndpoint, provider: Provider) -> None:
    if provider.is_host:
        if not _HOST.fullmatch(endpoint.endpoint):
            raise InvalidRecord("endpoint", f"expected a site such as {provider.example}")
        return
    try:
        parts = urlsplit(endpoint.endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0 or parts.scheme not in ("http", "https"):
        raise InvalidRecord("endpoint", f"expected an address such as {provider.example}")
    if parts.username is not None or parts.password is not None:
        raise InvalidRecord("endpoint", "no user or password in addresses; they belong into the secret")
    if parts.query or parts.fragment:
        raise InvalidRecord("endpoint", "no query and no fragment; secrets belong into the secret")
    if endpoint.protocol is TelemetryProtocol.GRPC:
        if parts.path not in ("", "/"):
            raise InvalidRecord("endpoint", "an address for GRPC has no path")
        if parts.scheme == "http" and secret_keys(endpoint):
            raise InvalidRecord("endpoint", "secrets do not go over GRPC in the clear: use https://")


def _listed(words: frozenset[TelemetryType] | frozenset[TelemetryProtocol]) -> str:
    return ", ".join(sorted(word.value for word in words))


def _needed(keys: tuple[str, ...]) -> str:
    named = [key for key in keys if key]
    return ", ".join([*(["one value"] if WHOLE in keys else []), *named])
