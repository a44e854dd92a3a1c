"""Where an account wants its telemetry: endpoints, and a version's choice among them.

Field names and words are those of NVIDIA's management API (`/v2/nvcf/telemetries`, and `telemetries` of a
function version); DYNATRACE and `configuration` go beyond it ([ext]).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, field
from msgspec.structs import force_setattr

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.record import Id, Record, Text, matching

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


Plain = Annotated[str, matching(PLAIN_PATTERN)]
SecretKey = Annotated[str, matching(SECRET_KEY_PATTERN)]
Expression = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_PATTERN_LENGTH})]


class TelemetrySettings(Record, frozen=True, forbid_unknown_fields=True):
    """[ext] What an endpoint needs beyond its provider's own defaults. No secrets.

    `secret_headers` maps header names to keys of the secret, `headers` to plain values. `allow_metrics` are
    regular expressions (RE2, matched whole): with them only the platform's metrics and these are sent. Of
    the traces `sampled_percent` are kept, and always those with errors or longer than `slow_seconds`; None:
    those that callers and the platform sample.
    """

    auth: Annotated[TelemetryAuth, Meta(description="For providers that leave it open.")] | None = None
    headers: Annotated[
        dict[str, Plain], Meta(max_length=MAX_HEADERS, description="Plain values by header name.")
    ] = field(default_factory=dict)
    secret_headers: Annotated[
        dict[str, SecretKey], Meta(max_length=MAX_HEADERS, description="Keys of the secret by header name.")
    ] = field(default_factory=dict)
    private_ca: Annotated[bool, Meta(description="Whether the secret has the CA's certificate, caFile.")] = (
        False
    )
    allow_metrics: Annotated[
        tuple[Expression, ...],
        Meta(
            max_length=MAX_PATTERNS,
            description="Regular expressions (RE2): only the platform's metrics and these are sent.",
        ),
    ] = ()
    sampled_percent: (
        Annotated[
            float,
            Meta(
                ge=0.0,
                le=100.0,
                description="Share of the traces that is kept besides those with errors and slow ones.",
            ),
        ]
        | None
    ) = None
    slow_seconds: Annotated[float, Meta(ge=0.001, le=3600.0)] | None = None

    def __post_init__(self) -> None:
        for place, headers in (("headers", self.headers), ("secretHeaders", self.secret_headers)):
            for header in headers:
                if not re.fullmatch(HEADER_PATTERN, header):
                    raise InvalidRecord(place, f"{header[:64]!r} is no header name")
        for index, text in enumerate(self.allow_metrics):
            _check_expression(f"allowMetrics[{index}]", text)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON members that differ from their defaults."""
        members = super().to_dict()
        numbers = ("sampledPercent", "slowSeconds")
        return {name: value for name, value in members.items() if value or name in numbers}


def _check_expression(place: str, text: str) -> None:
    if not 0 < len(text) <= MAX_PATTERN_LENGTH or not text.isascii() or not text.isprintable():
        raise InvalidRecord(place, f"expected 1 to {MAX_PATTERN_LENGTH} printable ASCII characters")
    if "$" in text:
        raise InvalidRecord(place, "expressions are matched whole; leave out $")
    if _NOT_RE2.search(text):
        raise InvalidRecord(place, "only what RE2 knows: no lookarounds, named groups, back references")
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidRecord(place, f"no regular expression: {error}") from None


TelemetryName = Annotated[str, matching(TELEMETRY_NAME_PATTERN)]
Address = Annotated[
    str,
    matching(
        r"[\x21-\x23\x25-\x7e]+",
        max_length=2048,
        description="Its address; for DATADOG the site, such as datadoghq.com.",
    ),
]
TelemetryTypes = Annotated[tuple[TelemetryType, ...], Meta(min_length=1)]


class TelemetrySecret(Record, frozen=True, forbid_unknown_fields=True):
    """The name of the credentials; never their values, which are kept sealed or in files on the clusters."""

    name: TelemetryName


class TelemetryEndpoint(Record, frozen=True):
    """One place that takes an account's telemetry. Key: its id.

    `secret` is the name of its credentials; their values are never here.
    """

    id: Id = field(name="telemetryId")
    name: TelemetryName
    nca_id: Text
    endpoint: Address
    protocol: TelemetryProtocol
    provider: TelemetryProvider
    types: TelemetryTypes
    created_at: float
    secret: TelemetrySecret | None = None
    settings: TelemetrySettings = field(name="configuration", default=TelemetrySettings())

    def __post_init__(self) -> None:
        force_setattr(self, "types", tuple(dict.fromkeys(self.types)))

    @property
    def secret_name(self) -> str:
        """Name of the endpoint's secret; empty without one."""
        return self.secret.name if self.secret else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON members, without an empty configuration."""
        members = super().to_dict()
        return {name: value for name, value in members.items() if value or name != "configuration"}


class Telemetries(Record, frozen=True, forbid_unknown_fields=True):
    """The endpoints that a version's logs, metrics and traces go to, by id."""

    logs: Id | None = field(name="logsTelemetryId", default=None)
    metrics: Id | None = field(name="metricsTelemetryId", default=None)
    traces: Id | None = field(name="tracesTelemetryId", default=None)

    def by_type(self) -> dict[TelemetryType, str]:
        """Return the ids of the chosen endpoints."""
        chosen = {
            TelemetryType.LOGS: self.logs,
            TelemetryType.METRICS: self.metrics,
            TelemetryType.TRACES: self.traces,
        }
        return {kind: endpoint for kind, endpoint in chosen.items() if endpoint is not None}
