"""Metrics of NVIDIA's own worker under its own names, so that existing queries keep working.

Each exists twice: with the prefix `nvcf_worker_service`, which NVIDIA's autoscaler and collector query
(https://github.com/NVIDIA/nvcf, src/libraries/go/worker/metrics), and with the short prefix `nvcf`.
"""

from __future__ import annotations

from nvcf_otel.instrument import Instrument, Kind

PREFIXES = ("nvcf_worker_service", "nvcf")

LATENCY_BUCKETS = (0.1, 0.25, 1.0, 5.0, 10.0, 30.0, 100.0, 500.0, 1000.0, 5000.0)

IDS = ("function_id", "function_version_id", "nca_id", "instance_id")
"""Attributes of all of them, by the names of NVIDIA's collector."""


def _counter(name: str, description: str, *attributes: str, unit: str = "") -> tuple[Instrument, ...]:
    return _both(name, Kind.OBSERVED_COUNTER, unit, description, attributes)


def _gauge(name: str, description: str, *attributes: str) -> tuple[Instrument, ...]:
    return _both(name, Kind.OBSERVED_GAUGE, "", description, attributes)


def _both(
    name: str, kind: Kind, unit: str, description: str, attributes: tuple[str, ...]
) -> tuple[Instrument, ...]:
    buckets = LATENCY_BUCKETS if kind is Kind.HISTOGRAM else None
    return tuple(
        Instrument(kind, f"{prefix}_{name}", unit, description, (*IDS, *attributes), buckets)
        for prefix in PREFIXES
    )


REQUESTS = _counter("request_total", "Requests that the worker received.")
RESPONSES = _counter(
    "response_total",
    "Requests that came to an end; error_code is 0 for those that were answered, else 500.",
    "error_code",
)
RESPONSE_BYTES = _counter("response_bytes_total", "Bytes of all answers.", unit="By")
THREADS = _gauge("worker_thread_count_total", "Requests that the worker takes at once.")
BUSY_SECONDS = _counter("worker_thread_busy_seconds_total", "Seconds that slots held a request.", unit="s")
LATENCY = _both("request_latency_seconds", Kind.HISTOGRAM, "s", "Requests from arrival to end.", ())
PRE_INFERENCE = _counter("pre_inference_seconds_total", "Seconds from arrival to the handler.", unit="s")
POST_INFERENCE = _counter("post_inference_seconds_total", "Seconds from the handler to the end.", unit="s")
INFERENCE = _counter("inference_request_time_seconds_total", "Seconds in the handler.", unit="s")
HEALTH_CHECKS = _counter("healthcheck_total", "Health checks of the function's server.", "result")
TOKEN_REFRESH_FAILURES = _gauge(
    "token_refresh_failure_total", "Refreshes of the worker token that failed.", "token_type"
)
SESSIONS = _counter("stateful_proxy_success_total", "Sessions that were linked to their caller.")
NATS_OUT_BYTES = _gauge("nats_out_bytes", "Bytes sent to the broker.")
NATS_IN_BYTES = _gauge("nats_in_bytes", "Bytes received from the broker.")
NATS_OUT_MESSAGES = _gauge("nats_out_msgs", "Messages sent to the broker.")
NATS_IN_MESSAGES = _gauge("nats_in_msgs", "Messages received from the broker.")
NATS_RECONNECTS = _gauge("nats_reconnects", "Reconnections of the present broker connection.")
NATS_ERRORS = _counter("nats_error_total", "Errors of broker connections.")
NATS_RECONNECT_TOTAL = _counter("nats_reconnect_total", "Reconnections to the broker.")
NATS_DISCONNECTS = _counter("nats_disconnect_total", "Broker connections that were lost.")
NATS_LAME_DUCK = _counter("nats_lame_duck_total", "Broker servers that said they were about to leave.")
NATS_SERVER = _gauge("nats_server_fqdn", "1 for the broker that the worker is connected to.", "nats_fqdn")
NATS_PRIMARY_REGION = _gauge("nats_connected_pri_region", "1 for the worker's own region.", "region")
NATS_OTHER_REGIONS = _gauge(
    "nats_connected_sec_regions", "1 for the further regions that it takes requests from.", "regions"
)

ALL: tuple[Instrument, ...] = tuple(
    instrument for pair in list(globals().values()) if isinstance(pair, tuple) for instrument in pair
    if isinstance(instrument, Instrument)
)  # fmt: skip
