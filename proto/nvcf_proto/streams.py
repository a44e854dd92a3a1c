"""JetStream settings of the contract's streams and consumers (protocol.md, section 2.3).

Each function returns the JSON object of the JetStream API, durations in nanoseconds. Source of
the field names: NATS JetStream API, `$JS.API.STREAM.CREATE` and `$JS.API.CONSUMER.DURABLE.CREATE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from nvcf_proto import subjects
from nvcf_proto.stores import PROBE

Storage = Literal["file", "memory"]

MAX_QUEUED_REQUESTS = 100_000
MAX_REQUEST_BYTES = 6 * 1024 * 1024
DUPLICATE_WINDOW_SECONDS = 5
TRACKING_MAX_AGE_SECONDS = 3600
SESSION_RECORD_MAX_AGE_SECONDS = 3600
OWN_SESSION_RECORD_MAX_AGE_SECONDS = 24 * 3600
DEFAULT_ACK_WAIT_SECONDS = 30.0
DEFAULT_MAX_DELIVER = 5
DEFAULT_PLACEMENT_TAG_KEY = "aws-region"

PROBE_STREAM = "nvcf_probe"
PROBE_SUBJECT = "nvcf.probe"

_NANOSECONDS = 1_000_000_000


def request_stream_config(
    region: str,
    version_id: str,
    *,
    storage: Storage = "file",
    replicas: int = 1,
    placement_tag: str | None = None,
    max_queued: int = MAX_QUEUED_REQUESTS,
) -> dict[str, Any]:
    """Return the settings of the stream `rq_R_V`.

    `max_queued` may be lower than the contract's for a version that wants to refuse callers earlier.

    `placement_tag` is `KEY:R`; None leaves placement to the broker (a broker that is no cluster
    knows no placement).
    """
    return {
        "name": subjects.request_stream(region, version_id),
        "subjects": [subjects.request_subjects(region, version_id)],
        "retention": "workqueue",
        "discard_new_per_subject": True,
        **_common(storage, replicas, placement_tag),
        "max_msgs": min(max_queued, MAX_QUEUED_REQUESTS),
    }


def tracking_stream_config(
    region: str,
    *,
    storage: Storage = "file",
    replicas: int = 1,
    placement_tag: str | None = None,
    bounds: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the settings of the stream `requestToFunctionVersion_R`; `bounds` as of `nvcf_proto.stores`."""
    return {
        "name": subjects.tracking_stream(region),
        "subjects": [subjects.tracking_subject(region, ">")],
        "retention": "limits",
        "max_age": TRACKING_MAX_AGE_SECONDS * _NANOSECONDS,
        **_common(storage, replicas, placement_tag),
        **bounds,
    }


def more_tracking_stream_config(
    region: str,
    *,
    storage: Storage = "file",
    replicas: int = 1,
    placement_tag: str | None = None,
    bounds: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the settings of `nvcf_tracking_R` [ext]: records that found the contract's stream full.

    The contract's limit is one for all accounts. What an account may keep is bounded by its quota, and this
    stream by its bytes.
    """
    return {
        "name": subjects.more_tracking_stream(region),
        "subjects": [subjects.more_tracking_subject(region, "*")],
        "retention": "limits",
        "max_age": TRACKING_MAX_AGE_SECONDS * _NANOSECONDS,
        **_common(storage, replicas, placement_tag),
        "max_msgs": -1,
        **bounds,
    }


def session_lookup_stream_config(
    region: str,
    *,
    storage: Storage = "file",
    replicas: int = 1,
    placement_tag: str | None = None,
    bounds: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the settings of the stream `stateful_session_lookup_R`; `bounds` as of `nvcf_proto.stores`.

    A record lives three times as long as the interval at which its worker publishes it again. A worker
    ends it with an empty message that has a time to live [ext]: it may not purge.
    """
    return {
        "name": subjects.session_lookup_stream(region),
        "subjects": [subjects.session_lookup_subject(region, "*", "*")],
        "retention": "limits",
        "max_age": SESSION_RECORD_MAX_AGE_SECONDS * _NANOSECONDS,
        "allow_msg_ttl": True,
        **_common(storage, replicas, placement_tag),
        **bounds,
        "discard": "old",
    }


def probe_stream_config(*, replicas: int = 1) -> dict[str, Any]:
    """Return the settings of the stream to which gateways write to find out whether the store works [ext]."""
    return {
        "name": PROBE_STREAM,
        "subjects": [PROBE_SUBJECT],
        "storage": "file",
        "num_replicas": replicas,
        "discard": "old",
        "max_msgs": 1,
        **PROBE.bounds(),
    }


def session_stream_config(
    region: str,
    *,
    replicas: int = 1,
    placement_tag: str | None = None,
    bounds: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """[ext] Return the settings of the gateways' own records of sessions."""
    return {
        "name": subjects.session_stream(region),
        "subjects": [subjects.session_subject(region, "*")],
        "retention": "limits",
        "max_age": OWN_SESSION_RECORD_MAX_AGE_SECONDS * _NANOSECONDS,
        **_common("file", replicas, placement_tag),
        **bounds,
        "discard": "old",
    }


def _common(storage: Storage, replicas: int, placement_tag: str | None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "storage": storage,
        "num_replicas": replicas,
        "discard": "new",
        "max_msgs": MAX_QUEUED_REQUESTS,
        "max_msgs_per_subject": 1,
        "max_msg_size": MAX_REQUEST_BYTES,
        "duplicate_window": DUPLICATE_WINDOW_SECONDS * _NANOSECONDS,
        "allow_direct": True,
    }
    if placement_tag is not None:
        config["placement"] = {"tags": [placement_tag]}
    return config


def request_consumer_config(
    region: str,
    version_id: str,
    *,
    ack_wait_seconds: float = DEFAULT_ACK_WAIT_SECONDS,
    max_deliver: int = DEFAULT_MAX_DELIVER,
) -> dict[str, Any]:
    """Return the settings of the durable pull consumer `rq_R_V_workers`.

    `ack_wait_seconds` must be well above the workers' in-progress interval (10 s at most).
    `max_deliver` is [ext]: a request that kills its worker cannot kill every worker.
    """
    return {
        "durable_name": subjects.request_consumer(region, version_id),
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "replay_policy": "instant",
        "ack_wait": int(ack_wait_seconds * _NANOSECONDS),
        "max_deliver": max_deliver,
        "max_ack_pending": MAX_QUEUED_REQUESTS,
    }
