"""Dashboard for the operator: gateways, broker, autoscaler, clusters, workers."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from nvcf_otel import names
from nvcf_otel.dashboards import promql as q
from nvcf_otel.dashboards.panels import chart, dashboard, number, row, variable

HTTP = "http.server.request.duration"
HERE = q.matches(names.CLUSTER, "cluster")


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


def _of(attribute: str) -> str:
    return f"{{{{{q.label(attribute)}}}}}"


def _overview(board: Dashboard) -> Dashboard:
    code = q.label(names.HTTP_RESPONSE_STATUS_CODE)
    broken = q.rate(HTTP, where=f'{code}=~"5.."')
    connected = q.series("nvcf.broker.connected")
    gpu = q.label(names.GPU)
    free = f'{q.label(names.GPU_STATE)}="free", {gpu}!="CPU"'
    return row(
        board,
        "Overview",
        number("Requests", "HTTP requests of all gateways per second.", q.rate(HTTP), "reqps"),
        number(
            "Server errors",
            "Share of requests with a 5xx response, the functions' own included.",
            q.share(broken, q.rate(HTTP)),
            "percentunit",
            limits=(0.01, 0.05),
        ),
        number(
            "Calls in progress", "Calls that wait for a response.", q.total("nvcf.invocation.active"), "short"
        ),
        number("Queued", "Requests that no worker has pulled yet.", q.total("nvcf.queue.depth"), "short"),
        number(
            "Without broker",
            "Processes without a broker connection.",
            f"count ({connected}) - sum ({connected})",
            "short",
            limits=(1, 2),
        ),
        number("Free GPUs", "In all clusters.", q.or_zero(q.total("nvcf.cluster.gpus", where=free)), "short"),
    )


def _gateways(board: Dashboard) -> Dashboard:
    code = q.label(names.HTTP_RESPONSE_STATUS_CODE)
    broken = q.or_zero(q.rate(HTTP, [names.HTTP_ROUTE], f'{code}=~"5.."'))
    route = _of(names.HTTP_ROUTE)
    return row(
        board,
        "Gateways",
        chart("Requests", "By route.", [(route, q.rate(HTTP, [names.HTTP_ROUTE]))], "reqps", stacked=True),
        chart(
            "p99",
            "By route; invocations last as long as their functions.",
            [(route, q.quantile(0.99, HTTP, [names.HTTP_ROUTE]))],
            "s",
            exemplars=True,
        ),
        chart("Server errors", "5xx responses by route.", [(route, broken)], "reqps", stacked=True),
        chart(
            "Refused",
            "Calls that were not queued, by reason.",
            [(_of(names.REASON), q.or_zero(q.rate("nvcf.invocation.rejected", [names.REASON])))],
            "reqps",
            stacked=True,
        ),
        chart(
            "Sessions",
            "gRPC and WebSocket sessions with a link to a worker.",
            [("sessions", q.or_zero(q.total("nvcf.sessions.active")))],
            "short",
        ),
        chart(
            "Session traffic",
            "Bytes through tunnels.",
            [(_of(names.DIRECTION), q.or_zero(q.rate("nvcf.tunnel.bytes", [names.DIRECTION])))],
            "Bps",
        ),
    )


def _broker(board: Dashboard) -> Dashboard:
    return row(
        board,
        "Broker",
        chart(
            "Storing a request",
            "From the gateway's publish to the broker's acknowledgement.",
            [
                (name, q.quantile(share, "nvcf.enqueue.duration"))
                for name, share in (("p50", 0.5), ("p99", 0.99))
            ],
            "s",
        ),
        chart(
            "Reconnections",
            "By all processes.",
            [("reconnects", q.rate("nvcf.broker.reconnects"))],
            "ops",
        ),
        chart(
            "Queues",
            "Requests in all queues, and the age of the oldest in seconds.",
            [
                ("waiting", q.total("nvcf.queue.depth")),
                ("in flight", q.total("nvcf.requests.in_flight")),
                ("oldest, seconds", q.highest("nvcf.queue.age")),
            ],
            "short",
        ),
        chart(
            "Dropped telemetry",
            "By signal. The backend is slow or unreachable.",
            [(_of(names.SIGNAL), q.or_zero(q.rate("nvcf.telemetry.dropped", [names.SIGNAL])))],
            "ops",
        ),
    )


def _autoscaler(board: Dashboard) -> Dashboard:
    decision, wake = "nvcf.scaling.decision.duration", "nvcf.wake_up.duration"
    return row(
        board,
        "Autoscaler",
        chart(
            "Reconciliation",
            "Time to reconcile one version: read, decide, act.",
            [("p50", q.quantile(0.5, decision)), ("p99", q.quantile(0.99, decision))],
            "s",
        ),
        chart(
            "Wake-up",
            "From the notice of a request without an instance to the creation message.",
            [("p50", q.quantile(0.5, wake)), ("p99", q.quantile(0.99, wake))],
            "s",
        ),
        chart(
            "Decisions",
            "By direction.",
            [(_of(names.DIRECTION), q.rate("nvcf.scaling.decisions", [names.DIRECTION]))],
            "ops",
            stacked=True,
        ),
    )


def _clusters(board: Dashboard) -> Dashboard:
    gpu_and = f"{_of(names.CLUSTER)} {_of(names.GPU)}"
    start, where = "nvcf.instance.start.duration", HERE
    return row(
        board,
        "Clusters",
        chart(
            "GPUs",
            "Of each cluster; CPU means slots without a GPU.",
            [
                (
                    f"{gpu_and} {_of(names.GPU_STATE)}",
                    q.total("nvcf.cluster.gpus", [names.CLUSTER, names.GPU, names.GPU_STATE], where),
                ),
            ],
            "short",
        ),
        chart(
            "Instances",
            "By cluster and state.",
            [
                (
                    f"{_of(names.CLUSTER)} {_of(names.INSTANCE_STATE)}",
                    q.total(
                        "nvcf.instances", [names.CLUSTER, names.INSTANCE_STATE], f"{where}, {q.living()}"
                    ),
                ),
            ],
            "short",
            stacked=True,
        ),
        chart(
            "Starts",
            "From the start of an instance until it is ready, p90.",
            [(gpu_and, q.quantile(0.9, start, [names.CLUSTER, names.GPU], where))],
            "s",
        ),
        chart(
            "Exits",
            "Exits of instances' processes, by category.",
            [
                (
                    f"{_of(names.CLUSTER)} {_of(names.CATEGORY)}",
                    q.rate("nvcf.instance.exits", [names.CLUSTER, names.CATEGORY], where),
                ),
            ],
            "ops",
            stacked=True,
        ),
        chart(
            "Agents' messages",
            "Time to handle a creation or termination message, p99.",
            [
                (
                    f"{_of(names.CLUSTER)} {_of(names.MESSAGE_KIND)}",
                    q.quantile(
                        0.99, "nvcf.agent.message.duration", [names.CLUSTER, names.MESSAGE_KIND], where
                    ),
                ),
            ],
            "s",
        ),
    )


def _workers(board: Dashboard) -> Dashboard:
    busy = q.share(q.total("nvcf.worker.slots.busy"), q.total("nvcf.worker.slots"))
    return row(
        board,
        "Workers and processes",
        chart("Slots in use", "Of all instances.", [("busy", busy)], "percentunit", maximum=1),
        chart(
            "Event loops",
            "Longest delay in the last minute. Above some milliseconds, something blocks the loop.",
            [("{{job}}", f"max by (job) ({q.series('nvcf.event_loop.lag')})")],
            "s",
        ),
        chart(
            "CPU",
            "CPU seconds per second of all processes.",
            [("{{job}}", f"sum by (job) (rate({q.series('process.cpu.time')}[{q.WINDOW}]))")],
            "short",
        ),
        chart(
            "Memory",
            "Resident memory of all processes.",
            [("{{job}}", f"sum by (job) ({q.series('process.memory.usage')})")],
            "bytes",
        ),
    )
