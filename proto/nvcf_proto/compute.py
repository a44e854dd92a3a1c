"""The compute plane's messages and records: creation, termination, clusters, demand, events.

See protocol.md, section 6.

Subjects: `Create.NVCA.{ncaId}.{clusterID}.{gpu}.{instanceType}` and `Terminate.NVCA.{clusterID}`. The
contract fixes their shape and the consumers' names; bodies are JSON. Messages may arrive twice and out of
order: the instance ids are chosen by who asks, so that doing a thing again does nothing.
"""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any

from msgspec import Meta, field

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import ProcessSource, Record
from nvcf_proto.models.record import Count, Id, Text
from nvcf_proto.stores import COMMANDS, EVENTS

CREATE_STREAM = "nvca_create"
TERMINATE_STREAM = "nvca_terminate"
CREATE_SUBJECTS = "Create.NVCA.>"
TERMINATE_SUBJECTS = "Terminate.NVCA.>"

CLUSTERS_BUCKET = "nvcf_clusters"
LEASES_BUCKET = "nvcf_leases"
AUTOSCALER_LEASE = "autoscaler"
LEASE_STREAM = f"KV_{LEASES_BUCKET}"
LEASE_SUBJECT = f"$KV.{LEASES_BUCKET}.{AUTOSCALER_LEASE}"
"""Where the leading autoscaler renews its lease."""
EVENTS_STREAM = "nvcf_events"
EVENTS_SUBJECTS = "nvcf.event.>"
DEMAND_SUBJECTS = "nvcf.demand.*"
WAKE_SUBJECTS = "nvcf.wake.*"

HEARTBEAT_SECONDS = 2.0
SILENT_AFTER_SECONDS = 10.0
DEMAND_REPORT_SECONDS = 1.0
MESSAGE_MAX_AGE_SECONDS = 3600
EVENT_MAX_AGE_SECONDS = 7 * 24 * 3600
EVENT_MAX_COUNT = 100_000

_NOT_TOKEN = re.compile(r"[^A-Za-z0-9_-]+")
_NANOSECONDS = 1_000_000_000
_ACCOUNT_EVENTS = uuid.UUID("0d1b9a1c-6f0e-4e5b-8a53-3d6f6f0f4c11")


def subject_token(text: str) -> str:
    """Return text as one subject token: what is not a letter, digit, `-` or `_` becomes `-`."""
    return _NOT_TOKEN.sub("-", text) or "-"


def create_subject(nca_id: str, cluster_id: str, gpu: str, instance_type: str) -> str:
    """Return the subject of one creation message."""
    tokens = (subject_token(part) for part in (nca_id, cluster_id, gpu, instance_type))
    return "Create.NVCA." + ".".join(tokens)


def cluster_create_filter(cluster_id: str) -> str:
    """Return the filter of a cluster's creation consumer."""
    return f"Create.NVCA.*.{subject_token(cluster_id)}.*.*"


def terminate_subject(cluster_id: str) -> str:
    """Return the subject of a cluster's termination messages."""
    return f"Terminate.NVCA.{subject_token(cluster_id)}"


def cluster_consumer(stream: str, cluster_id: str) -> str:
    """Return the durable consumer of one cluster on one of the two streams."""
    return f"{stream}-{subject_token(cluster_id)}"


def demand_subject(version_id: str) -> str:
    """Return the subject on which gateways report a version's demand."""
    return f"nvcf.demand.{version_id}"


def wake_subject(version_id: str) -> str:
    """Return the subject on which a gateway reports at once a request without a running instance."""
    return f"nvcf.wake.{version_id}"


def event_subject(version_id: str) -> str:
    """Return the subject on which changes of a version are recorded."""
    return f"nvcf.event.{version_id}"


def account_event_id(nca_id: str) -> str:
    """Return the id under which changes of an account itself are recorded, in place of a version's id."""
    return str(uuid.uuid5(_ACCOUNT_EVENTS, nca_id))


def work_stream_config(name: str, subjects: str, replicas: int = 1) -> dict[str, Any]:
    """Return the JetStream settings of the creation and termination streams."""
    return {
        "name": name,
        "subjects": [subjects],
        "retention": "workqueue",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "old",
        **COMMANDS.bounds(),
        "max_age": MESSAGE_MAX_AGE_SECONDS * _NANOSECONDS,
        "duplicate_window": 120 * _NANOSECONDS,
    }


def event_stream_config(replicas: int = 1) -> dict[str, Any]:
    """Return the JetStream settings of the event stream."""
    return {
        "name": EVENTS_STREAM,
        "subjects": [EVENTS_SUBJECTS],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "old",
        **EVENTS.bounds(),
        "max_age": EVENT_MAX_AGE_SECONDS * _NANOSECONDS,
        "max_msgs": EVENT_MAX_COUNT,
        "allow_direct": True,
    }


# Bounds of what one message may ask for; far above anything that makes sense.
MOST_INSTANCES = 1000
MOST_GPUS = 1024
MOST_CONCURRENT = 65_536
LONGEST_LIFE = 24 * 3600.0
LONGEST_GRACE = 24 * 3600.0

InstanceIds = Annotated[tuple[str, ...], Meta(max_length=MOST_INSTANCES)]
Counter = Annotated[int, Meta(ge=0, le=2**62)]


class CreationMessage(Record, frozen=True, kw_only=True):
    """Create these instances in one cluster. Times are Unix seconds; an expired message is dropped.

    Exactly one of `process` and `container_image` is set.
    """

    message_id: Text
    cluster_id: Text
    function_id: Id
    version_id: Id = field(name="functionVersionId")
    function_name: Text
    nca_id: Text
    specification_id: Text = field(name="gpuSpecificationId")
    gpu: Text
    instance_type: Text
    gpus_per_instance: Annotated[int, Meta(ge=0, le=MOST_GPUS)] = 0
    max_request_concurrency: Annotated[int, Meta(ge=1, le=MOST_CONCURRENT)] = 1
    max_execution_seconds: Annotated[int, Meta(ge=1)] | None = None
    instance_ids: InstanceIds = ()
    issued_at: float
    expires_at: float
    process: ProcessSource | None = None
    container_image: Text | None = None
    reason: Text | None = None
    trace_parent: Text | None = field(name="traceparent", default=None)

    def __post_init__(self) -> None:
        # What never expired would have to be remembered for ever.
        if self.expires_at - self.issued_at > LONGEST_LIFE:
            raise InvalidRecord("expiresAt", f"more than {LONGEST_LIFE:g} seconds after issuedAt")

    @property
    def subject(self) -> str:
        """Subject on which the message is published."""
        return create_subject(self.nca_id, self.cluster_id, self.gpu, self.instance_type)


class TerminationMessage(Record, frozen=True, kw_only=True):
    """End these instances of one cluster; they have `grace_seconds` to finish what they hold."""

    message_id: Text
    cluster_id: Text
    version_id: Id = field(name="functionVersionId")
    instance_ids: InstanceIds = ()
    grace_seconds: Annotated[float, Meta(ge=0.0, le=LONGEST_GRACE)] = 30.0
    issued_at: float
    reason: Text | None = None


class GpuPool(Record, frozen=True):
    """Instances of one kind that a cluster can hold. `instances_free` is what could be created now."""

    gpu: Text
    instance_type: Text
    instances_total: Count
    instances_free: Count


class Cluster(Record, frozen=True):
    """A cluster as its agent reports it every HEARTBEAT_SECONDS. Key: the cluster's id."""

    id: Text = field(name="clusterId")
    region: Text
    heartbeat_at: float
    pools: tuple[GpuPool, ...] = ()
    group: Text | None = field(name="clusterGroup", default=None)
    backend: Text = "process"
    attributes: dict[str, str] = field(default_factory=dict)
    draining: bool = False


class DemandReport(Record, frozen=True):
    """One gateway's counters of a version since its start: only differences mean something.

    `busy_seconds` is the integral of requests that wait here over time.
    """

    gateway_id: Text
    version_id: Id = field(name="functionVersionId")
    at: float
    arrivals: Counter
    completions: Counter
    waiting: Count
    busy_seconds: float


class Event(Record, frozen=True):
    """Something that changed, for people: `nvcf events` and `nvcf scaling` list them.

    `kind` is one of `deployment`, `scaling`, `instance`, `cluster`, `secret`. `data` holds details as
    strings.
    """

    at: float
    kind: Text
    version_id: Text = field(name="functionVersionId")
    text: Text
    function_name: Text | None = None
    data: dict[str, str] = field(default_factory=dict)
