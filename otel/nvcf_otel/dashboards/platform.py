"""Dashboard for the operator: gateways, broker, autoscaler, clusters, workers."""

from __future__ import annotations

from collections.abc import Callable

from grafana_foundation_sdk.builders.dashboard import Dashboard

from nvcf_otel import names
from nvcf_otel.dashboards import promql as q
from nvcf_otel.dashboards.panels import chart, dashboard, number, row, variable

HTTP = "http.server.request.duration"
HERE = q.matches(names.CLUSTER, "cluster")
BROKEN = f'{q.label(names.HTTP_RESPONSE_STATUS_CODE)}=~"5.."'


def build() -> Dashboard:
    """Return the dashboard."""
    gpus = q.instrument("nvcf.cluster.gpus").prometheus_name
    board = dashboard("nvcf-platform", "NVCF: platform", "Gateways, broker, autoscaler, clusters, workers.")
    board = board.with_variable(
        variable("cluster", "Cluster", f"label_values({gpus}, {q.label(names.CLUSTER)})")
    )
    for part in (_overview, _gateways, _broker, _autoscaler, _clusters, _workers):
        board = part(board)
    return board


def _overview(board: Dashboard) -> Dashboard:
    requests = q.rate(HTTP)
    broken = q.share(q.rate(HTTP, where=BROKEN), requests)
    included = "Share of requests with a 5xx response, the functions' own included."
    calls, queued = q.total("nvcf.invocation.active"), q.total("nvcf.queue.depth")
    connected = q.series("nvcf.broker.connected")
    alone = f"count ({connected}) - sum ({connected})"
    free = f'{q.label(names.GPU_STATE)}="free", {q.label(names.GPU)}!="CPU"'
    gpus = q.or_zero(q.total("nvcf.cluster.gpus", where=free))
    return row(
        board,
        "Overview",
        number("Requests", "HTTP requests of all gateways per second.", requests, "reqps"),
        number("Server errors", included, broken, "percentunit", limits=(0.01, 0.05)),
        number("Calls in progress", "Calls that wait for a response.", calls, "short"),
        number("Queued", "Requests that no worker has pulled yet.", queued, "short"),
        number("Without broker", "Processes without a broker connection.", alone, "short", limits=(1, 2)),
        number("Free GPUs", "In all clusters.", gpus, "short"),
    )


def _gateways(board: Dashboard) -> Dashboard:
    route = q.legend(names.HTTP_ROUTE)
    requests = [(route, q.rate(HTTP, [names.HTTP_ROUTE]))]
    p99 = [(route, q.quantile(0.99, HTTP, [names.HTTP_ROUTE]))]
    broken = [(route, q.or_zero(q.rate(HTTP, [names.HTTP_ROUTE], BROKEN)))]
    refused = [(q.legend(names.REASON), q.or_zero(q.rate("nvcf.invocation.rejected", [names.REASON])))]
    sessions = [("sessions", q.or_zero(q.total("nvcf.sessions.active")))]
    traffic = [(q.legend(names.DIRECTION), q.or_zero(q.rate("nvcf.tunnel.bytes", [names.DIRECTION])))]
    return row(
        board,
        "Gateways",
        chart("Requests", "By route.", requests, "reqps", stacked=True),
        chart("p99", "By route; invocations last as long as their functions.", p99, "s", exemplars=True),
        chart("Server errors", "5xx responses by route.", broken, "reqps", stacked=True),
        chart("Refused", "Calls that were not queued, by reason.", refused, "reqps", stacked=True),
        chart("Sessions", "gRPC and WebSocket sessions with a link to a worker.", sessions, "short"),
        chart("Session traffic", "Bytes through tunnels.", traffic, "Bps"),
    )


def _broker(board: Dashboard) -> Dashboard:
    stored = q.percentiles("nvcf.enqueue.duration", 0.5, 0.99)
    reconnects = [("reconnects", q.rate("nvcf.broker.reconnects"))]
    queues = [
        ("waiting", q.total("nvcf.queue.depth")),
        ("in flight", q.total("nvcf.requests.in_flight")),
        ("oldest, seconds", q.highest("nvcf.queue.age")),
    ]
    dropped = [(q.legend(names.SIGNAL), q.or_zero(q.rate("nvcf.telemetry.dropped", [names.SIGNAL])))]
    publish = "From the gateway's publish to the broker's acknowledgement."
    return row(
        board,
        "Broker",
        chart("Storing a request", publish, stored, "s"),
        chart("Reconnections", "By all processes.", reconnects, "ops"),
        chart("Queues", "Requests in all queues, and the age of the oldest in seconds.", queues, "short"),
        chart("Dropped telemetry", "By signal. The backend is slow or unreachable.", dropped, "ops"),
    )


def _autoscaler(board: Dashboard) -> Dashboard:
    reconciled = q.percentiles("nvcf.scaling.decision.duration", 0.5, 0.99)
    woken = q.percentiles("nvcf.wake_up.duration", 0.5, 0.99)
    decisions = [(q.legend(names.DIRECTION), q.rate("nvcf.scaling.decisions", [names.DIRECTION]))]
    notice = "From the notice of a request without an instance to the creation message."
    return row(
        board,
        "Autoscaler",
        chart("Reconciliation", "Time to reconcile one version: read, decide, act.", reconciled, "s"),
        chart("Wake-up", notice, woken, "s"),
        chart("Decisions", "By direction.", decisions, "ops", stacked=True),
    )


def _clusters(board: Dashboard) -> Dashboard:
    def by(query: Callable[[list[str]], str], *attributes: str) -> list[tuple[str, str]]:
        listed = [names.CLUSTER, *attributes]
        return [(q.legend(*listed), query(listed))]

    living = f"{HERE}, {q.living()}"
    start, handled = "nvcf.instance.start.duration", "nvcf.agent.message.duration"
    gpus = by(lambda each: q.total("nvcf.cluster.gpus", each, HERE), names.GPU, names.GPU_STATE)
    instances = by(lambda each: q.total("nvcf.instances", each, living), names.INSTANCE_STATE)
    starts = by(lambda each: q.quantile(0.9, start, each, HERE), names.GPU)
    exits = by(lambda each: q.rate("nvcf.instance.exits", each, HERE), names.CATEGORY)
    messages = by(lambda each: q.quantile(0.99, handled, each, HERE), names.MESSAGE_KIND)
    return row(
        board,
        "Clusters",
        chart("GPUs", "Of each cluster; CPU means slots without a GPU.", gpus, "short"),
        chart("Instances", "By cluster and state.", instances, "short", stacked=True),
        chart("Starts", "From the start of an instance until it is ready, p90.", starts, "s"),
        chart("Exits", "Exits of instances' processes, by category.", exits, "ops", stacked=True),
        chart("Agents' messages", "Time to handle a creation or termination message, p99.", messages, "s"),
    )


def _workers(board: Dashboard) -> Dashboard:
    busy = [("busy", q.share(q.total("nvcf.worker.slots.busy"), q.total("nvcf.worker.slots")))]
    lag = [("{{job}}", f"max by (job) ({q.series('nvcf.event_loop.lag')})")]
    cpu = [("{{job}}", f"sum by (job) (rate({q.series('process.cpu.time')}[{q.WINDOW}]))")]
    memory = [("{{job}}", f"sum by (job) ({q.series('process.memory.usage')})")]
    delay = "Longest delay in the last minute. Above some milliseconds, something blocks the loop."
    return row(
        board,
        "Workers and processes",
        chart("Slots in use", "Of all instances.", busy, "percentunit", maximum=1),
        chart("Event loops", delay, lag, "s"),
        chart("CPU", "CPU seconds per second of all processes.", cpu, "short"),
        chart("Memory", "Resident memory of all processes.", memory, "bytes"),
    )
