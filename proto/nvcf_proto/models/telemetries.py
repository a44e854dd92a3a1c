"""Where an account wants its telemetry: endpoints, and a version's choice among them.

Field names and words are those of NVIDIA's management API (`/v2/nvcf/telemetries`, and `telemetries` of a
function version); DYNATRACE and `configuration` go beyond it ([ext]).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.base import Record
from nvcf_proto.records import Fields

TELEMETRIES_BUCKET = "nvcf_telemetries"

# Names become parts of file names and of component ids in the collector's configuration.
TELEMETRY_NAME_PATTERN = r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,47}"
SECRET_KEY_PATTERN = r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}"
HEADER_PATTERN = r"[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,128}"
# Printable ASCII; a dollar sign would be read as a reference by the collector.
PLAIN_PATTERN = r"[\x20-\x23\x25-\x7e]{0,1024}"
# What Python's expressions have and RE2 has not, counts above its limit of 1000 among it.
_NOT_RE2 = re.compile(r"\(\?[=!<P(#>aLux]|\\[1-9kKgGUNZu]|\[\[|[*+?}]\+|\{[0-9,]*[0-9]{4}")
MAX_HEADERS = 16
MAX_PATTERNS = 64
MAX_PATTERN_LENGTH = 256


class TelemetryProtocol(StrEnum):
    """How an endpoint is spoken to."""

    HTTP = "HTTP"
    GRPC = "GRPC"


class TelemetryType(StrEnum):
    """Kinds of telemetry."""

    LOGS = "LOGS"
    METRICS = "METRICS"
    TRACES = "TRACES"


class TelemetryProvider(StrEnum):
    """Whose endpoint it is. OTEL_COLLECTOR is anything that speaks OTLP."""

    OTEL_COLLECTOR = "OTEL_COLLECTOR"
    PROMETHEUS = "PROMETHEUS"
    VICTORIAMETRICS = "VICTORIAMETRICS"
    GRAFANA_CLOUD = "GRAFANA_CLOUD"
    DATADOG = "DATADOG"
    SPLUNK = "SPLUNK"
    AZURE_MONITOR = "AZURE_MONITOR"
    DYNATRACE = "DYNATRACE"
    SERVICENOW = "SERVICENOW"
    KRATOS = "KRATOS"
    KRATOS_THANOS = "KRATOS_THANOS"


class TelemetryAuth(StrEnum):
    """How a provider that leaves it open wants to know who sends.

    What each needs of the secret: BEARER `token`; BASIC `username` and `password`; MTLS `clientCert` and
    `clientKey`.
    """

    NONE = "NONE"
    BEARER = "BEARER"
    BASIC = "BASIC"
    MTLS = "MTLS"


@dataclass(frozen=True)
class TelemetrySettings(Record):
    """[ext] What an endpoint needs beyond its provider's own defaults. No secrets.

    `secret_headers` maps header names to keys of the secret, `headers` to plain values. `allow_metrics` are
    regular expressions (RE2, matched whole): with them only the platform's metrics and these are sent. Of
    the traces `sampled_percent` are kept, and always those with errors or longer than `slow_seconds`; None:
    those that callers and the platform sample.
    """

    auth: TelemetryAuth | None = None
    headers: dict[str, str] = field(default_factory=dict)
    secret_headers: dict[str, str] = field(default_factory=dict)
    private_ca: bool = False
    allow_metrics: tuple[str, ...] = ()
    sampled_percent: float | None = None
    slow_seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        members = {
            "auth": self.auth.value if self.auth else None,
            "headers": self.headers or None,
            "secretHeaders": self.secret_headers or None,
            "privateCa": self.private_ca or None,
            "allowMetrics": list(self.allow_metrics) or None,
            "sampledPercent": self.sampled_percent,
            "slowSeconds": self.slow_seconds,
        }
        return {key: value for key, value in members.items() if value is not None}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        fields.only(
            (
                "auth",
                "headers",
                "secretHeaders",
                "privateCa",
                "allowMetrics",
                "sampledPercent",
                "slowSeconds",
            )
        )
        return cls(
            auth=TelemetryAuth(fields.text("auth", choices=list(TelemetryAuth)))
            if fields.has("auth")
            else None,
            headers=_headers(fields, "headers", PLAIN_PATTERN),
            secret_headers=_headers(fields, "secretHeaders", SECRET_KEY_PATTERN),
            private_ca=fields.boolean("privateCa", False) if fields.has("privateCa") else False,
            allow_metrics=_patterns(fields, "allowMetrics"),
            sampled_percent=_bounded(fields, "sampledPercent", 0.0, 100.0),
            slow_seconds=_bounded(fields, "slowSeconds", 0.001, 3600.0),
        )


def _headers(fields: Fields, name: str, pattern: str) -> dict[str, str]:
    found = fields.text_map(name) if fields.has(name) else {}
    if len(found) > MAX_HEADERS:
        raise InvalidRecord(fields.path(name), f"more than {MAX_HEADERS} headers")
    for header, value in found.items():
        if not re.fullmatch(HEADER_PATTERN, header):
            raise InvalidRecord(fields.path(name), f"{header[:64]!r} is no header name")
        if not re.fullmatch(pattern, value):
            raise InvalidRecord(f"{fields.path(name)}.{header}", f"does not match {pattern}")
    return found


def _patterns(fields: Fields, name: str) -> tuple[str, ...]:
    found = fields.texts(name) if fields.has(name) else ()
    if len(found) > MAX_PATTERNS:
        raise InvalidRecord(fields.path(name), f"more than {MAX_PATTERNS} expressions")
    for index, text in enumerate(found):
        path = f"{fields.path(name)}[{index}]"
        if not 0 < len(text) <= MAX_PATTERN_LENGTH or not text.isascii() or not text.isprintable():
            raise InvalidRecord(path, f"expected 1 to {MAX_PATTERN_LENGTH} printable ASCII characters")
        if "$" in text:
            raise InvalidRecord(path, "expressions are matched whole; leave out $")
        if _NOT_RE2.search(text):
            raise InvalidRecord(path, "only what RE2 knows: no lookarounds, named groups, back references")
        try:
            re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise InvalidRecord(path, f"no regular expression: {error}") from None
    return found


def _bounded(fields: Fields, name: str, minimum: float, maximum: float) -> float | None:
    if not fields.has(name):
        return None
    value = fields.number(name)
    if not minimum <= value <= maximum:
        raise InvalidRecord(fields.path(name), f"expected {minimum:g} to {maximum:g}, got {value:g}")
    return value


@dataclass(frozen=True)
class TelemetryEndpoint(Record):
    """One place that takes an account's telemetry. Key: its id.

    `secret` is the name under which its credentials lie where the instances run; their values are never here.
    """

    id: str
    name: str
    nca_id: str
    endpoint: str
    protocol: TelemetryProtocol
    provider: TelemetryProvider
    types: tuple[TelemetryType, ...]
    created_at: float
    secret: str | None = None
    settings: TelemetrySettings = TelemetrySettings()

    def to_dict(self) -> dict[str, Any]:
        return {
            "telemetryId": self.id,
            "name": self.name,
            "ncaId": self.nca_id,
            "endpoint": self.endpoint,
            "protocol": self.protocol.value,
            "provider": self.provider.value,
            "types": [each.value for each in self.types],
            "createdAt": self.created_at,
            "secret": {"name": self.secret} if self.secret else None,
            "configuration": self.settings.to_dict() or None,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            id=fields.id("telemetryId"),
            name=fields.text("name", pattern=TELEMETRY_NAME_PATTERN),
            nca_id=fields.text("ncaId"),
            endpoint=fields.text("endpoint", max_length=2048, pattern=r"[\x21-\x23\x25-\x7e]+"),
            protocol=TelemetryProtocol(fields.text("protocol", choices=list(TelemetryProtocol))),
            provider=TelemetryProvider(fields.text("provider", choices=list(TelemetryProvider))),
            types=_types(fields),
            created_at=fields.number("createdAt"),
            secret=_secret(fields.object("secret")) if fields.has("secret") else None,
            settings=TelemetrySettings.from_fields(fields.object("configuration"))
            if fields.has("configuration")
            else TelemetrySettings(),
        )


def _types(fields: Fields) -> tuple[TelemetryType, ...]:
    found = []
    for index, text in enumerate(fields.texts("types")):
        if text not in set(TelemetryType):
            raise InvalidRecord(
                f"{fields.path('types')}[{index}]", f"expected one of {', '.join(sorted(TelemetryType))}"
            )
        found.append(TelemetryType(text))
    if not found:
        raise InvalidRecord(fields.path("types"), "name at least one of LOGS, METRICS, TRACES")
    return tuple(dict.fromkeys(found))


def _secret(fields: Fields) -> str:
    if fields.has("value"):
        raise InvalidRecord(
            fields.path("value"),
            "secrets are not kept here: put each key of it into a file NAME-KEY (or NAME, if it has one key) "
            "in the agents' folder of telemetry secrets, and give its name only",
        )
    fields.only(("name",))
    return fields.text("name", pattern=TELEMETRY_NAME_PATTERN)


@dataclass(frozen=True)
class Telemetries(Record):
    """The endpoints that a version's logs, metrics and traces go to, by id."""

    logs: str | None = None
    metrics: str | None = None
    traces: str | None = None

    def to_dict(self) -> dict[str, Any]:
        members = {
            "logsTelemetryId": self.logs,
            "metricsTelemetryId": self.metrics,
            "tracesTelemetryId": self.traces,
        }
        return {key: value for key, value in members.items() if value is not None}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        def chosen(name: str) -> str | None:
            return fields.id(name) if fields.has(name) else None

        fields.only(("logsTelemetryId", "metricsTelemetryId", "tracesTelemetryId"))
        return cls(chosen("logsTelemetryId"), chosen("metricsTelemetryId"), chosen("tracesTelemetryId"))

    def by_type(self) -> dict[TelemetryType, str]:
        """Ids of the chosen endpoints."""
        chosen = {
            TelemetryType.LOGS: self.logs,
            TelemetryType.METRICS: self.metrics,
            TelemetryType.TRACES: self.traces,
        }
        return {kind: endpoint for kind, endpoint in chosen.items() if endpoint is not None}
