"""OpenTelemetry's standard environment variables as values. Pure.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and
https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import unquote, urlsplit

from nvcf_otel.propagation import propagators_from

DEFAULT_RATIO = 0.01
"""Share of traces that are recorded when neither the caller nor OTEL_TRACES_SAMPLER_ARG decides.

A recorded request makes about ten spans and costs about 0.5 ms of CPU over gateway and worker, more than an
echo costs otherwise (0.3 ms). One in a hundred costs less than two per cent of the throughput of functions
that do nothing. Callers can have theirs recorded with a sampled `traceparent`. Functions that take a second
can record all.
"""

MAX_DIGITS = 10
"""Upper bound of times: a hundred days in milliseconds. A longer timer ends the thread that sends."""


class Protocol(Enum):
    """Transport of OTLP."""

    GRPC = "grpc"
    HTTP = "http/protobuf"


@dataclass(frozen=True)
class Export:
    """Destination of one kind of telemetry. `headers` may hold secrets. `timeout` is in seconds."""

    endpoint: str
    protocol: Protocol
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 10.0
    gzip: bool = False
    certificate: str | None = None
    client_key: str | None = None
    client_certificate: str | None = None

    @property
    def insecure(self) -> bool:
        """Return whether it is sent in clear text."""
        return urlsplit(self.endpoint).scheme != "https"


@dataclass(frozen=True)
class QueueSettings:
    """A queue in front of an exporter: its size, the batch size, and seconds between exports."""

    size: int = 2048
    batch: int = 512
    delay: float = 5.0


@dataclass(frozen=True)
class SamplerSettings:
    """`ratio` is for the samplers that have one."""

    name: str = "parentbased_traceidratio"
    ratio: float = DEFAULT_RATIO


SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)


@dataclass(frozen=True)
class Settings:
    """Settings from the environment. `problems` lists invalid ones, which are ignored."""

    traces: Export | None = None
    metrics: Export | None = None
    logs: Export | None = None
    sampler: SamplerSettings = SamplerSettings()
    resource: Mapping[str, str] = field(default_factory=dict)
    service_name: str | None = None
    metric_interval: float = 60.0
    metric_timeout: float = 30.0
    spans: QueueSettings = QueueSettings()
    log_records: QueueSettings = QueueSettings(delay=1.0)
    disabled: bool = False
    problems: tuple[str, ...] = ()

    @property
    def exports(self) -> bool:
        """Return whether anything is exported."""
        return not self.disabled and any((self.traces, self.metrics, self.logs))


def settings_from(environ: Mapping[str, str]) -> Settings:
    """Read the settings. Never raises: invalid telemetry settings must not stop a service."""
    reader = _Reader(environ)
    reader.propagators()
    return Settings(
        traces=reader.export("TRACES"),
        metrics=reader.export("METRICS"),
        logs=reader.export("LOGS"),
        sampler=reader.sampler(),
        resource=pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", "")),
        service_name=environ.get("OTEL_SERVICE_NAME") or None,
        metric_interval=reader.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60_000),
        metric_timeout=reader.milliseconds("OTEL_METRIC_EXPORT_TIMEOUT", 30_000),
        spans=reader.queue("OTEL_BSP", 5_000),
        log_records=reader.queue("OTEL_BLRP", 1_000),
        disabled=environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true",
        problems=tuple(reader.problems),
    )


def pairs(text: str) -> dict[str, str]:
    """Read `name=value,name=value`, values percent-encoded as in W3C baggage. Skip invalid parts."""
    found = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if equals and name.strip():
            found[unquote(name.strip())] = unquote(value.strip())
    return found


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def _signal(self, signal: str, name: str) -> str:
        specific = self._environ.get(f"OTEL_EXPORTER_OTLP_{signal}_{name}", "").strip()
        return specific or self._environ.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip()

    def export(self, signal: str) -> Export | None:
        exporter = self._environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower()
        if exporter == "none":
            return None
        if exporter not in ("", "otlp"):
            self._problem(f"OTEL_{signal}_EXPORTER is {exporter!r}; only otlp and none are known")
            return None
        own = self._environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "").strip()
        base = own or self._environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
        if not base and not exporter:
            return None
        protocol = self._protocol(signal, base)
        if protocol is None:
            return None
        endpoint = base or f"http://localhost:{4317 if protocol is Protocol.GRPC else 4318}"
        if protocol is Protocol.GRPC and "://" not in endpoint:
            insecure = self._signal(signal, "INSECURE").lower() == "true"
            endpoint = f"{'http' if insecure else 'https'}://{endpoint}"
        elif protocol is Protocol.HTTP and not own:
            endpoint = f"{endpoint.rstrip('/')}/v1/{signal.lower()}"
        if not self._usable(signal, endpoint):
            return None
        return Export(
            endpoint,
            protocol,
            {name.lower(): value for name, value in pairs(self._signal(signal, "HEADERS")).items()},
            self.milliseconds(
                f"OTEL_EXPORTER_OTLP_{signal}_TIMEOUT",
                1000 * self.milliseconds("OTEL_EXPORTER_OTLP_TIMEOUT", 10_000),
            ),
            self._signal(signal, "COMPRESSION").lower() == "gzip",
            self._signal(signal, "CERTIFICATE") or None,
            self._signal(signal, "CLIENT_KEY") or None,
            self._signal(signal, "CLIENT_CERTIFICATE") or None,
        )

    def _protocol(self, signal: str, endpoint: str) -> Protocol | None:
        text = self._signal(signal, "PROTOCOL").lower()
        if not text:
            # The registered port of OTLP over HTTP: gRPC on it can only fail.
            return Protocol.HTTP if endpoint.rstrip("/").endswith(":4318") else Protocol.GRPC
        try:
            return Protocol(text)
        except ValueError:
            known = " and ".join(each.value for each in Protocol)
            self._problem(f"OTEL_EXPORTER_OTLP_PROTOCOL is {text!r}; {known} are known")
            return None

    def _usable(self, signal: str, endpoint: str) -> bool:
        try:
            parts = urlsplit(endpoint)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            self._problem(f"the OTLP endpoint for {signal.lower()} is {endpoint!r}; it must be a http(s) URL")
        return usable

    def propagators(self) -> None:
        problem = propagators_from(self._environ).problem
        if problem is not None:
            self._problem(problem)

    def sampler(self) -> SamplerSettings:
        name = self._environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or SamplerSettings.name
        if name not in SAMPLERS:
            self._problem(f"OTEL_TRACES_SAMPLER is {name!r}; known are {', '.join(SAMPLERS)}")
            return SamplerSettings()
        text = self._environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
        if not text:
            # A named sampler without a ratio gets the specification's default, which is all.
            named = bool(self._environ.get("OTEL_TRACES_SAMPLER", "").strip())
            return SamplerSettings(name, 1.0 if named else DEFAULT_RATIO)
        try:
            ratio = float(text)
        except ValueError:
            ratio = -1.0
        if not 0.0 <= ratio <= 1.0:
            self._problem(f"OTEL_TRACES_SAMPLER_ARG is {text!r}; it must be a number from 0 to 1")
            return SamplerSettings(name)
        return SamplerSettings(name, ratio)

    def queue(self, prefix: str, delay: int) -> QueueSettings:
        size = max(1, self._whole(f"{prefix}_MAX_QUEUE_SIZE", 2048))
        batch = max(1, self._whole(f"{prefix}_MAX_EXPORT_BATCH_SIZE", 512))
        return QueueSettings(size, min(size, batch), self.milliseconds(f"{prefix}_SCHEDULE_DELAY", delay))

    def milliseconds(self, name: str, default: float) -> float:
        """Return seconds from a variable in milliseconds. Less than one millisecond counts as unset."""
        return (self._whole(name, 0) or default) / 1000

    def _whole(self, name: str, default: int) -> int:
        text = self._environ.get(name, "").strip()
        if not text:
            return default
        if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS:
            return int(text)
        self._problem(f"{name} is {text[:32]!r}; it must be a whole number of {MAX_DIGITS} digits at most")
        return default

    def _problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)
