"""Every figure that a part of the platform tells; those of workers are in `worker_instruments`."""

from __future__ import annotations

from nvcf_otel import compatible, names, worker_instruments
from nvcf_otel.instrument import Instrument as Instrument
from nvcf_otel.instrument import Kind as Kind
from nvcf_otel.instrument import prometheus_name as prometheus_name

HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""What the semantic conventions ask for."""
CALL_BUCKETS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    1200.0,
    3600.0,
)
START_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0)
SHORT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_VERSION = (names.FUNCTION_ID, names.FUNCTION_VERSION_ID)

# Gateway.
HTTP_SERVER_REQUEST_DURATION = Instrument(
    "http.server.request.duration",
    Kind.HISTOGRAM,
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
INVOCATION_DURATION = Instrument(
    "nvcf.invocation.duration",
    Kind.HISTOGRAM,
    "s",
    "Calls of functions, from the request to the answer's end.",
    (*_VERSION, names.ROUTE, names.OUTCOME),
    CALL_BUCKETS,
)
INVOCATION_ACTIVE = Instrument(
    "nvcf.invocation.active", Kind.OBSERVED_UP_DOWN, "{request}", "Calls that wait at this gateway.", _VERSION
)
INVOCATION_REJECTED = Instrument(
    "nvcf.invocation.rejected",
    Kind.OBSERVED_COUNTER,
    "{request}",
    "Calls refused before they were queued.",
    (names.ROUTE, names.REASON),
)
INVOCATION_COLD_STARTS = Instrument(
    "nvcf.invocation.cold_starts",
    Kind.OBSERVED_COUNTER,
    "{request}",
    "Calls queued while no instance ran.",
    _VERSION,
)
COLD_START_DURATION = Instrument(
    "nvcf.invocation.cold_start.duration",
    Kind.HISTOGRAM,
    "s",
    "Calls that met no instance, from the queue to the head of the first answer.",
    _VERSION,
    START_BUCKETS,
)
ENQUEUE_DURATION = Instrument(
    "nvcf.enqueue.duration", Kind.HISTOGRAM, "s", "Storing requests in the queue.", _VERSION, SHORT_BUCKETS
)
SESSIONS_ACTIVE = Instrument(
    "nvcf.sessions.active", Kind.OBSERVED_UP_DOWN, "{session}", "Sessions with a link to a worker."
)
TUNNEL_BYTES = Instrument(
    "nvcf.tunnel.bytes",
    Kind.OBSERVED_COUNTER,
    "By",
    "Bytes through sessions, to workers and to callers.",
    (names.DIRECTION,),
)

# Autoscaler, from the leader alone.
QUEUE_DEPTH = Instrument(
    "nvcf.queue.depth", Kind.OBSERVED_GAUGE, "{request}", "Requests that wait.", _VERSION
)
QUEUE_AGE = Instrument(
    "nvcf.queue.age", Kind.OBSERVED_GAUGE, "s", "How long the oldest one has waited.", _VERSION
)
REQUESTS_IN_FLIGHT = Instrument(
    "nvcf.requests.in_flight", Kind.OBSERVED_GAUGE, "{request}", "Requests that workers hold.", _VERSION
)
INSTANCES = Instrument(
    "nvcf.instances",
    Kind.OBSERVED_GAUGE,
    "{instance}",
    "Instances.",
    (*_VERSION, names.INSTANCE_STATE, names.CLUSTER, names.GPU),
)
SCALING_DESIRED = Instrument(
    "nvcf.scaling.desired",
    Kind.OBSERVED_GAUGE,
    "{instance}",
    "Instances that there should be.",
    (*_VERSION, names.SPECIFICATION),
)
SCALING_DECISIONS = Instrument(
    "nvcf.scaling.decisions",
    Kind.COUNTER,
    "{decision}",
    "Decisions that changed something.",
    (names.DIRECTION,),
)
SCALING_DECISION_DURATION = Instrument(
    "nvcf.scaling.decision.duration",
    Kind.HISTOGRAM,
    "s",
    "Looking at one version and acting.",
    (),
    SHORT_BUCKETS,
)
WAKE_UP_DURATION = Instrument(
    "nvcf.wake_up.duration",
    Kind.HISTOGRAM,
    "s",
    "From the word that a request met no instance to the creation message.",
    (),
    SHORT_BUCKETS,
)
GPU_TIME = Instrument(
    "nvcf.gpu.time",
    Kind.OBSERVED_COUNTER,
    "s",
    "GPU seconds held; of gpu CPU, slots without a GPU.",
    (*_VERSION, names.GPU, names.CLUSTER, names.PHASE),
)
UTILISATION = Instrument(
    "nvcf.utilisation",
    Kind.OBSERVED_GAUGE,
    "1",
    "Share of slots of running instances that hold a request.",
    _VERSION,
)
FUNCTION_INFO = Instrument(
    "nvcf.function.info",
    Kind.OBSERVED_GAUGE,
    "",
    "Always 1: what the ids of a version are called.",
    (*_VERSION, names.FUNCTION_NAME),
)

# Agent.
INSTANCE_START_DURATION = Instrument(
    "nvcf.instance.start.duration",
    Kind.HISTOGRAM,
    "s",
    "From the start of an instance until it serves.",
    (names.CLUSTER, names.GPU),
    START_BUCKETS,
)
INSTANCE_EXITS = Instrument(
    "nvcf.instance.exits",
    Kind.COUNTER,
    "{exit}",
    "Ends of instances' processes.",
    (names.CLUSTER, names.CATEGORY),
)
CLUSTER_GPUS = Instrument(
    "nvcf.cluster.gpus",
    Kind.OBSERVED_GAUGE,
    "{gpu}",
    "GPUs of the cluster; of gpu CPU, slots without one.",
    (names.CLUSTER, names.GPU, names.GPU_STATE),
)
AGENT_MESSAGE_DURATION = Instrument(
    "nvcf.agent.message.duration",
    Kind.HISTOGRAM,
    "s",
    "Taking in a creation or termination message.",
    (names.CLUSTER, names.MESSAGE_KIND),
    SHORT_BUCKETS,
)

# Everyone.
TELEMETRY_DROPPED = Instrument(
    "nvcf.telemetry.dropped",
    Kind.OBSERVED_COUNTER,
    "{item}",
    "Telemetry that was thrown away.",
    (names.SIGNAL,),
)
BROKER_RECONNECTS = Instrument(
    "nvcf.broker.reconnects", Kind.OBSERVED_COUNTER, "{reconnect}", "Connections to the broker made anew."
)
BROKER_CONNECTED = Instrument(
    "nvcf.broker.connected", Kind.OBSERVED_GAUGE, "", "1 while connected to the broker, else 0."
)

ALL: tuple[Instrument, ...] = (
    *(each for each in list(globals().values()) if isinstance(each, Instrument)),
    *worker_instruments.ALL,
    *compatible.ALL,
)
