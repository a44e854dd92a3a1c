"""Telemetry of the agent: spans and durations of starts, exits of instances, free GPUs."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from nvcf_agent.messages import Delivery
from nvcf_agent.state import order as orders
from nvcf_agent.state.managed_instance import ManagedInstance
from nvcf_otel import instruments, names, spans
from nvcf_otel.histograms import histogram
from nvcf_proto.icms.reports import GpuUsage

ASKED = "asked"
"""Category of a requested end."""

_tracer = trace.get_tracer("nvcf_agent")


@dataclass
class _Start:
    span: Span
    began: float
    gpu: str
    last_part: float


class AgentTelemetry:
    """Records spans and metrics. Used on the event loop."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._starts: dict[str, _Start] = {}
        self._exits = instruments.INSTANCE_EXITS.create(metrics.get_meter("nvcf_agent"))

    def starting(self, instance: ManagedInstance) -> str | None:
        """Begin the span of a start, and return the traceparent for the instance.

        The span lasts until the instance serves or its start has failed.
        """
        order = instance.order
        self.failed(instance.id, "started anew")
        span = _tracer.start_span(
            names.CREATE_INSTANCE,
            context=spans.below(spans.parsed(order.trace_parent)),
            kind=SpanKind.CONSUMER,
            attributes={
                names.FUNCTION_ID: orders.function_id(order),
                names.FUNCTION_VERSION_ID: instance.version_id,
                names.FUNCTION_NAME: instance.function_name,
                names.INSTANCE_ID: instance.id,
                names.CLUSTER: self._cluster,
                names.GPU: orders.gpu(order),
                names.RESTARTS: instance.restarts,
            },
        )
        self._starts[instance.id] = _Start(span, time.perf_counter(), orders.gpu(order), time.time())
        # Without an SDK the span has the creation message's own context, or none.
        return spans.traceparent(span.get_span_context()) or order.trace_parent

    def ready(self, instance_id: str) -> None:
        """Record that an instance serves."""
        start = self._starts.pop(instance_id, None)
        if start is None:
            return
        series = histogram(instruments.INSTANCE_START_DURATION).series(
            {names.CLUSTER: self._cluster, names.GPU: start.gpu}
        )
        series.record(time.perf_counter() - start.began, start.span)
        start.span.end()

    def part(self, instance_id: str, part: str, at: float) -> None:
        """Record that a part of a start is over, since Unix time `at`; it began when the one before ended."""
        start = self._starts.get(instance_id)
        if start is None:
            return
        span = _tracer.start_span(
            names.CREATE_INSTANCE_PART,
            context=trace.set_span_in_context(start.span),
            start_time=round(start.last_part * 1e9),
            attributes={names.INSTANCE_ID: instance_id, names.PART: part},
        )
        start.last_part = max(start.last_part, at)
        span.end(round(start.last_part * 1e9))

    def failed(self, instance_id: str, reason: str) -> None:
        """Record that a start has failed."""
        start = self._starts.pop(instance_id, None)
        if start is not None:
            start.span.set_status(Status(StatusCode.ERROR, reason.partition("\n")[0]))
            start.span.end()

    def ended(self, instance: ManagedInstance, category: str, reason: str) -> None:
        """Record the end of a process; `instance` is its state before."""
        category = ASKED if instance.is_ending else category
        self._exits.add(1, {names.CLUSTER: self._cluster, names.CATEGORY: category})
        start = self._starts.get(instance.id)
        if start is not None:
            start.span.set_attribute(names.CATEGORY, category)
        self.failed(instance.id, reason)

    def timed(
        self, kind: str, handle: Callable[[Delivery], Awaitable[None]]
    ) -> Callable[[Delivery], Awaitable[None]]:
        """Return `handle` with its duration recorded."""
        series = histogram(instruments.AGENT_MESSAGE_DURATION).series(
            {names.CLUSTER: self._cluster, names.MESSAGE_KIND: kind}
        )

        async def timed(delivery: Delivery) -> None:
            began = time.perf_counter()
            try:
                await handle(delivery)
            finally:
                series.record(time.perf_counter() - began)

        return timed

    def register_gpus(self, usage: Callable[[], Mapping[str, GpuUsage]]) -> None:
        """Create the gauge of free and used GPUs; `usage` is called on another thread."""

        def gpus(_: CallbackOptions) -> Iterable[Observation]:
            for gpu, used in usage().items():
                attributes = {names.CLUSTER: self._cluster, names.GPU: gpu}
                yield Observation(used.available, {**attributes, names.GPU_STATE: "free"})
                yield Observation(used.allocated, {**attributes, names.GPU_STATE: "used"})

        instruments.CLUSTER_GPUS.create(metrics.get_meter("nvcf_agent"), gpus)
