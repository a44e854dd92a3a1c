"""What an agent tells: starts of instances as spans, how long they take, how they end, what is free."""

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from nvcf_agent.state.inventory import Inventory, Share
from nvcf_agent.state.managed_instance import Request
from nvcf_otel import instruments, names, spans
from nvcf_otel.histograms import histogram

ASKED = "asked"
"""Category of an end that somebody asked for."""

_tracer = trace.get_tracer("nvcf_agent")


@dataclass
class _Start:
    span: Span
    began: float
    gpu: str


class AgentTelemetry:
    """Used on the event loop."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._starts: dict[str, _Start] = {}
        self._exits = instruments.INSTANCE_EXITS.create(metrics.get_meter("nvcf_agent"))

    def starting(self, request: Request) -> str | None:
        """A process is about to be started for an instance; the traceparent that it continues.

        Its span lasts until the instance serves, or is not going to.
        """
        order = request.order
        self.failed(request.id, "started anew")
        span = _tracer.start_span(
            names.CREATE_INSTANCE,
            context=spans.below(spans.parsed(order.trace_parent)),
            kind=SpanKind.CONSUMER,
            attributes={
                names.FUNCTION_ID: order.function_id,
                names.FUNCTION_VERSION_ID: order.version_id,
                names.FUNCTION_NAME: order.function_name,
                names.INSTANCE_ID: request.id,
                names.CLUSTER: self._cluster,
                names.GPU: order.gpu,
                names.RESTARTS: request.restarts,
            },
        )
        self._starts[request.id] = _Start(span, time.perf_counter(), order.gpu)
        # Without an SDK the span has the creation message's own context, or none.
        return spans.traceparent(span.get_span_context()) or order.trace_parent

    def ready(self, instance_id: str) -> None:
        """An instance serves."""
        start = self._starts.pop(instance_id, None)
        if start is None:
            return
        series = histogram(instruments.INSTANCE_START_DURATION).series(
            {names.CLUSTER: self._cluster, names.GPU: start.gpu}
        )
        series.record(time.perf_counter() - start.began, start.span)
        start.span.end()

    def failed(self, instance_id: str, reason: str) -> None:
        """An instance that was starting is not going to serve."""
        start = self._starts.pop(instance_id, None)
        if start is not None:
            start.span.set_status(Status(StatusCode.ERROR, reason.partition("\n")[0]))
            start.span.end()

    def ended(self, request: Request, category: str, reason: str) -> None:
        """An instance's process has ended; `request` as it was before."""
        category = ASKED if request.is_ending else category
        self._exits.add(1, {names.CLUSTER: self._cluster, names.CATEGORY: category})
        start = self._starts.get(request.id)
        if start is not None:
            start.span.set_attribute(names.CATEGORY, category)
        self.failed(request.id, reason)

    def timed(
        self, kind: str, handle: Callable[[bytes], Awaitable[None]]
    ) -> Callable[[bytes], Awaitable[None]]:
        """`handle` with its durations told."""
        series = histogram(instruments.AGENT_MESSAGE_DURATION).series(
            {names.CLUSTER: self._cluster, names.MESSAGE_KIND: kind}
        )

        async def timed(body: bytes) -> None:
            began = time.perf_counter()
            try:
                await handle(body)
            finally:
                series.record(time.perf_counter() - began)

        return timed

    def observe(self, inventory: Inventory, held: Callable[[], list[Share]]) -> None:
        """Let what is free and taken be collected; `held` is called on another thread."""

        def gpus(_: CallbackOptions) -> Iterable[Observation]:
            counts = {pool.gpu: pool for pool in inventory.pools(held())}
            for gpu, pool in counts.items():
                attributes = {names.CLUSTER: self._cluster, names.GPU: gpu}
                yield Observation(pool.instances_free, {**attributes, names.GPU_STATE: "free"})
                used = pool.instances_total - pool.instances_free
                yield Observation(used, {**attributes, names.GPU_STATE: "used"})

        instruments.CLUSTER_GPUS.create(metrics.get_meter("nvcf_agent"), gpus)
