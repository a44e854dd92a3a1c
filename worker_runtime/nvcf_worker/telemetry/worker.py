"""Telemetry of a worker, and the start of its instance as a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import Link, Status, StatusCode

from nvcf_otel import names, spans
from nvcf_proto.environment import NVCF_SCALING_TRACEPARENT, TRACEPARENT
from nvcf_worker.function.cancellation import CancelScope
from nvcf_worker.message import Work
from nvcf_worker.telemetry.measurements import measure_load
from nvcf_worker.telemetry.observer import NoopObserver, RequestObserver
from nvcf_worker.telemetry.request import RequestInstruments, RequestTelemetry

if TYPE_CHECKING:
    from nvcf_otel.setup import Telemetry
    from nvcf_worker.control.config import WorkerConfig
    from nvcf_worker.telemetry.metering import Metering
    from nvcf_worker.telemetry.metrics import WorkerMetrics


class NoTelemetry:
    """Telemetry of a worker that records nothing."""

    metrics_page: Callable[[str], tuple[bytes, str]] | None = None
    """Makes the page `/metrics` on the health port."""

    def __init__(self) -> None:
        self.broker: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def request(self, work: Work, scope: CancelScope) -> RequestObserver:
        """Return the observer of a request; called in the request's own task."""
        return NoopObserver(work.trace)

    async def load(self, setting_up: Awaitable[None]) -> None:
        """Await the set-up of the function in this process, and record it."""
        await setting_up

    def ready(self) -> None:
        """Record that the worker pulls requests; only the first call counts."""

    def refresh_failed(self) -> None:
        """Count a worker token that could not be renewed."""

    def health_checked(self, healthy: bool) -> None:
        """Count a health check of the function's server."""

    def environment(self) -> dict[str, str]:
        """Return variables for a child process: its spans belong below the start of the instance."""
        return {}

    def shutdown(self, seconds: float) -> None:
        """Send what is queued, in at most `seconds`. Blocks."""


class WorkerTelemetry(NoTelemetry):
    """Metrics, traces and usage events of one worker."""

    def __init__(
        self,
        sdk: Telemetry,
        config: WorkerConfig,
        metrics: WorkerMetrics,
        metering: Metering | None,
        environ: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.metrics = metrics
        self.broker = metrics.broker
        self.dropped = metrics.dropped
        self.metering = metering
        self._sdk = sdk
        if sdk.has_page:
            self.metrics_page = sdk.page
        instance = {
            names.FUNCTION_ID: config.function_id,
            names.FUNCTION_VERSION_ID: config.version_id,
            names.INSTANCE_ID: config.instance_id,
        }
        self.start = InstanceStart(instance, environ)
        attributes: dict[str, str | int | bool] = {
            names.MESSAGING_SYSTEM: names.NATS,
            names.MESSAGING_OPERATION_NAME: "process",
            names.MESSAGING_OPERATION_TYPE: "process",
            **instance,
            **({names.FUNCTION_NAME: config.function_name} if config.function_name else {}),
        }
        self.requests = RequestInstruments(metrics, metering, config.version_id, attributes, self.start.links)

    def request(self, work: Work, scope: CancelScope) -> RequestObserver:
        observer = RequestTelemetry(self.requests, work, scope)
        self.requests.first = False
        return observer

    async def load(self, setting_up: Awaitable[None]) -> None:
        try:
            await measure_load(self.start.carrier(), setting_up)
        except Exception as error:
            self.start.failed(error)
            raise

    def ready(self) -> None:
        self.start.ready()
        if self.metering is not None:
            self.metering.ready()

    def refresh_failed(self) -> None:
        self.metrics.refresh_failures += 1

    def health_checked(self, healthy: bool) -> None:
        self.metrics.health_checks["success" if healthy else "failure"] += 1

    def environment(self) -> dict[str, str]:
        return self.start.carrier()

    def shutdown(self, seconds: float) -> None:
        self.start.ready()
        if self.metering is not None:
            self.metering.close(seconds / 2)
        self._sdk.shutdown(seconds)


class InstanceStart:
    """The start of an instance as a trace: below the agent's span, which the environment names."""

    def __init__(self, attributes: Mapping[str, str], environ: Mapping[str, str]) -> None:
        context = spans.below(spans.parsed(environ.get(TRACEPARENT)))
        tracer = trace.get_tracer("nvcf_worker")
        self.span = tracer.start_span(names.START_INSTANCE, context, attributes=attributes)
        self._scaling = spans.parsed(environ.get(NVCF_SCALING_TRACEPARENT))
        self._over = False

    def carrier(self) -> dict[str, str]:
        """Return the environment by which a child process makes its spans below this one."""
        text = spans.traceparent(self.span.get_span_context())
        return {} if text is None else {TRACEPARENT: text}

    def links(self) -> Sequence[Link]:
        """Return links to this start and to the scaling decision behind it, as far as they are known."""
        own = self.span.get_span_context()
        return (*spans.link(self._scaling), *spans.link(own if own.is_valid else None))

    def ready(self) -> None:
        """End the span; only the first call counts."""
        if not self._over:
            self._over = True
            self.span.end()

    def failed(self, error: BaseException) -> None:
        """End the span with an error."""
        if not self._over:
            self.span.set_attribute(names.ERROR_TYPE, type(error).__name__)
            self.span.set_status(Status(StatusCode.ERROR, str(error)))
            self.ready()
