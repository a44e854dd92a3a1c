"""All metrics of the platform's processes; those of workers are in `worker_instruments`."""

from __future__ import annotations

from nvcf_otel import compatible, names, worker_instruments
from nvcf_otel.instrument import Instrument as Instrument
from nvcf_otel.instrument import Kind as Kind
from nvcf_otel.instrument import counter, histogram, observed_counter, observed_gauge, observed_up_down
from nvcf_otel.instrument import prometheus_name as prometheus_name

HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Buckets that the semantic conventions ask for."""
CALL_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0, 3600.0,
)  # fmt: skip
START_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0)
SHORT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_VERSION = (names.FUNCTION_ID, names.FUNCTION_VERSION_ID)

# Gateway.
HTTP_SERVER_REQUEST_DURATION = histogram(
    "http.server.request.duration",
    "s",
    "Duration of HTTP server requests.",
    (
        names.HTTP_REQUEST_METHOD,
        names.HTTP_ROUTE,
        names.HTTP_RESPONSE_STATUS_CODE,
        names.URL_SCHEME,
        names.ERROR_TYPE,
    ),
    HTTP_BUCKETS,
)
INVOCATION_DURATION = histogram(
    "nvcf.invocation.duration",
    "s",
    "Calls of functions, from the request to the end of the response.",
    (*_VERSION, names.ROUTE, names.OUTCOME),
    CALL_BUCKETS,
)
INVOCATION_ACTIVE = observed_up_down(
    "nvcf.invocation.active", "{request}", "Calls in progress at this gateway.", _VERSION
)
INVOCATION_REJECTED = observed_counter(
    "nvcf.invocation.rejected",
    "{request}",
    "Calls refused before they were queued.",
    (names.ROUTE, names.REASON),
)
INVOCATION_COLD_STARTS = observed_counter(
    "nvcf.invocation.cold_starts", "{request}", "Calls queued while no instance ran.", _VERSION
)
COLD_START_DURATION = histogram(
    "nvcf.invocation.cold_start.duration",
    "s",
    "Cold starts: from enqueueing a call that found no instance to the head of its response.",
    _VERSION,
    START_BUCKETS,
)
ENQUEUE_DURATION = histogram(
    "nvcf.enqueue.duration", "s", "Time to store a request in the queue.", _VERSION, SHORT_BUCKETS
)
SESSIONS_ACTIVE = observed_up_down("nvcf.sessions.active", "{session}", "Sessions with a link to a worker.")
TUNNEL_BYTES = observed_counter(
    "nvcf.tunnel.bytes", "By", "Bytes carried by sessions, to workers and to callers.", (names.DIRECTION,)
)

# Autoscaler, from the leader alone.
QUEUE_DEPTH = observed_gauge("nvcf.queue.depth", "{request}", "Requests that wait in the queue.", _VERSION)
QUEUE_AGE = observed_gauge("nvcf.queue.age", "s", "Age of the oldest waiting request.", _VERSION)
REQUESTS_IN_FLIGHT = observed_gauge(
    "nvcf.requests.in_flight",
    "{request}",
    "Requests in flight: delivered to a worker and not finished.",
    _VERSION,
)
INSTANCES = observed_gauge(
    "nvcf.instances", "{instance}", "Instances.", (*_VERSION, names.INSTANCE_STATE, names.CLUSTER, names.GPU)
)
SCALING_DESIRED = observed_gauge(
    "nvcf.scaling.desired", "{instance}", "Desired number of instances.", (*_VERSION, names.SPECIFICATION)
)
SCALING_DECISIONS = counter(
    "nvcf.scaling.decisions",
    "{decision}",
    "Scaling decisions that changed the number of instances.",
    (names.DIRECTION,),
)
SCALING_DECISION_DURATION = histogram(
    "nvcf.scaling.decision.duration", "s", "Time to reconcile one version.", (), SHORT_BUCKETS
)
WAKE_UP_DURATION = histogram(
    "nvcf.wake_up.duration",
    "s",
    "From the notice of a request without an instance to the creation message.",
    (),
    SHORT_BUCKETS,
)
GPU_TIME = observed_counter(
    "nvcf.gpu.time",
    "s",
    "GPU seconds held by instances; for the GPU type CPU: seconds of slots without a GPU.",
    (*_VERSION, names.GPU, names.CLUSTER, names.PHASE),
)
UTILISATION = observed_gauge(
    "nvcf.utilisation", "1", "Share of the slots of running instances that are in use.", _VERSION
)
FUNCTION_INFO = observed_gauge(
    "nvcf.function.info",
    "",
    "Always 1; carries the name that belongs to the ids of a version.",
    (*_VERSION, names.FUNCTION_NAME),
)

# Agent.
INSTANCE_START_DURATION = histogram(
    "nvcf.instance.start.duration",
    "s",
    "From the start of an instance until it is ready.",
    (names.CLUSTER, names.GPU),
    START_BUCKETS,
)
INSTANCE_EXITS = counter(
    "nvcf.instance.exits", "{exit}", "Exits of instances' processes.", (names.CLUSTER, names.CATEGORY)
)
CLUSTER_GPUS = observed_gauge(
    "nvcf.cluster.gpus",
    "{gpu}",
    "GPUs of the cluster; for the GPU type CPU: slots without a GPU.",
    (names.CLUSTER, names.GPU, names.GPU_STATE),
)
AGENT_MESSAGE_DURATION = histogram(
    "nvcf.agent.message.duration",
    "s",
    "Time to handle a creation or termination message.",
    (names.CLUSTER, names.MESSAGE_KIND),
    SHORT_BUCKETS,
)

# Everyone.
TELEMETRY_DROPPED = observed_counter(
    "nvcf.telemetry.dropped", "{item}", "Telemetry items that were dropped.", (names.SIGNAL,)
)
BROKER_RECONNECTS = observed_counter("nvcf.broker.reconnects", "{reconnect}", "Reconnections to the broker.")
BROKER_CONNECTED = observed_gauge("nvcf.broker.connected", "", "1 while connected to the broker, else 0.")

ALL: tuple[Instrument, ...] = (
    *(each for each in list(globals().values()) if isinstance(each, Instrument)),
    *worker_instruments.ALL,
    *compatible.ALL,
)
