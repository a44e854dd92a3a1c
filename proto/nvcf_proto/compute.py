"""The compute plane's messages and records (section 6): creation, termination, clusters, demand, events.

Subjects: `Create.NVCA.{ncaId}.{clusterID}.{gpu}.{instanceType}` and `Terminate.NVCA.{clusterID}`. The
contract fixes their shape and the consumers' names; bodies are JSON. Messages may arrive twice and out of
order: the instance ids are chosen by who asks, so that doing a thing again does nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Self

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import ProcessSource, Record
from nvcf_proto.records import Fields

CREATE_STREAM = "nvca_create"
TERMINATE_STREAM = "nvca_terminate"
CREATE_SUBJECTS = "Create.NVCA.>"
TERMINATE_SUBJECTS = "Terminate.NVCA.>"

CLUSTERS_BUCKET = "nvcf_clusters"
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


def subject_token(text: str) -> str:
    """Text as one subject token: what is not a letter, digit, `-` or `_` becomes `-`."""
    return _NOT_TOKEN.sub("-", text) or "-"


def create_subject(nca_id: str, cluster_id: str, gpu: str, instance_type: str) -> str:
    """Subject of one creation message."""
    tokens = (subject_token(part) for part in (nca_id, cluster_id, gpu, instance_type))
    return "Create.NVCA." + ".".join(tokens)


def cluster_create_filter(cluster_id: str) -> str:
    """What a cluster's creation consumer filters on."""
    return f"Create.NVCA.*.{subject_token(cluster_id)}.*.*"


def terminate_subject(cluster_id: str) -> str:
    """Subject of a cluster's termination messages."""
    return f"Terminate.NVCA.{subject_token(cluster_id)}"


def cluster_consumer(stream: str, cluster_id: str) -> str:
    """Durable consumer of one cluster on one of the two streams."""
    return f"{stream}-{subject_token(cluster_id)}"


def demand_subject(version_id: str) -> str:
    """Where gateways report a version's demand."""
    return f"nvcf.demand.{version_id}"


def wake_subject(version_id: str) -> str:
    """Where a gateway says at once that a request met no running instance."""
    return f"nvcf.wake.{version_id}"


def event_subject(version_id: str) -> str:
    """Where changes of a version are recorded."""
    return f"nvcf.event.{version_id}"


def work_stream_config(name: str, subjects: str, replicas: int = 1) -> dict[str, Any]:
    """JetStream settings of the creation and termination streams."""
    return {
        "name": name,
        "subjects": [subjects],
        "retention": "workqueue",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "old",
        "max_age": MESSAGE_MAX_AGE_SECONDS * _NANOSECONDS,
        "duplicate_window": 120 * _NANOSECONDS,
    }


def event_stream_config(replicas: int = 1) -> dict[str, Any]:
    """JetStream settings of the event stream."""
    return {
        "name": EVENTS_STREAM,
        "subjects": [EVENTS_SUBJECTS],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "old",
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


def _instance_ids(fields: Fields) -> tuple[str, ...]:
    found = fields.texts("instanceIds")
    if len(found) > MOST_INSTANCES:
        raise InvalidRecord(
            fields.path("instanceIds"), f"more than {MOST_INSTANCES} instances in one message"
        )
    return found


def _within(fields: Fields, name: str, default: float, most: float) -> float:
    value = fields.number(name, default)
    if not 0 <= value <= most:
        raise InvalidRecord(fields.path(name), f"expected 0 to {most:g} seconds, got {value:g}")
    return value


def _expiry(fields: Fields) -> float:
    """What never expired would have to be remembered for ever."""
    expires_at = fields.number("expiresAt")
    if expires_at - fields.number("issuedAt") > LONGEST_LIFE:
        raise InvalidRecord(fields.path("expiresAt"), f"more than {LONGEST_LIFE:g} seconds after issuedAt")
    return expires_at


@dataclass(frozen=True)
class CreationMessage(Record):
    """Create these instances in one cluster. Times are Unix seconds; an expired message is dropped.

    Exactly one of `process` and `container_image` is set.
    """

    message_id: str
    cluster_id: str
    function_id: str
    version_id: str
    function_name: str
    nca_id: str
    specification_id: str
    gpu: str
    instance_type: str
    gpus_per_instance: int
    max_request_concurrency: int
    instance_ids: tuple[str, ...]
    issued_at: float
    expires_at: float
    process: ProcessSource | None = None
    container_image: str | None = None
    reason: str | None = None
    trace_parent: str | None = None

    @property
    def subject(self) -> str:
        """Where the message is published."""
        return create_subject(self.nca_id, self.cluster_id, self.gpu, self.instance_type)

    def to_dict(self) -> dict[str, Any]:
        return {
            "messageId": self.message_id,
            "clusterId": self.cluster_id,
            "functionId": self.function_id,
            "functionVersionId": self.version_id,
            "functionName": self.function_name,
            "ncaId": self.nca_id,
            "gpuSpecificationId": self.specification_id,
            "gpu": self.gpu,
            "instanceType": self.instance_type,
            "gpusPerInstance": self.gpus_per_instance,
            "maxRequestConcurrency": self.max_request_concurrency,
            "instanceIds": list(self.instance_ids),
            "issuedAt": self.issued_at,
            "expiresAt": self.expires_at,
            "process": self.process.to_dict() if self.process else None,
            "containerImage": self.container_image,
            "reason": self.reason,
            "traceparent": self.trace_parent,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            message_id=fields.text("messageId"),
            cluster_id=fields.text("clusterId"),
            function_id=fields.id("functionId"),
            version_id=fields.id("functionVersionId"),
            function_name=fields.text("functionName"),
            nca_id=fields.text("ncaId"),
            specification_id=fields.text("gpuSpecificationId"),
            gpu=fields.text("gpu"),
            instance_type=fields.text("instanceType"),
            gpus_per_instance=fields.integer("gpusPerInstance", 0, maximum=MOST_GPUS),
            max_request_concurrency=fields.integer(
                "maxRequestConcurrency", 1, minimum=1, maximum=MOST_CONCURRENT
            ),
            instance_ids=_instance_ids(fields),
            issued_at=fields.number("issuedAt"),
            expires_at=_expiry(fields),
            process=ProcessSource.from_fields(fields.object("process")) if fields.has("process") else None,
            container_image=fields.optional_text("containerImage"),
            reason=fields.optional_text("reason"),
            trace_parent=fields.optional_text("traceparent"),
        )


@dataclass(frozen=True)
class TerminationMessage(Record):
    """End these instances of one cluster; they have `grace_seconds` to finish what they hold."""

    message_id: str
    cluster_id: str
    version_id: str
    instance_ids: tuple[str, ...]
    grace_seconds: float
    issued_at: float
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "messageId": self.message_id,
            "clusterId": self.cluster_id,
            "functionVersionId": self.version_id,
            "instanceIds": list(self.instance_ids),
            "graceSeconds": self.grace_seconds,
            "issuedAt": self.issued_at,
            "reason": self.reason,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            message_id=fields.text("messageId"),
            cluster_id=fields.text("clusterId"),
            version_id=fields.id("functionVersionId"),
            instance_ids=_instance_ids(fields),
            grace_seconds=_within(fields, "graceSeconds", 30.0, LONGEST_GRACE),
            issued_at=fields.number("issuedAt"),
            reason=fields.optional_text("reason"),
        )


@dataclass(frozen=True)
class GpuPool(Record):
    """Instances of one kind that a cluster can hold. `instances_free` is what could be created now."""

    gpu: str
    instance_type: str
    instances_total: int
    instances_free: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "gpu": self.gpu,
            "instanceType": self.instance_type,
            "instancesTotal": self.instances_total,
            "instancesFree": self.instances_free,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            gpu=fields.text("gpu"),
            instance_type=fields.text("instanceType"),
            instances_total=fields.integer("instancesTotal"),
            instances_free=fields.integer("instancesFree"),
        )


@dataclass(frozen=True)
class Cluster(Record):
    """A cluster as its agent reports it every HEARTBEAT_SECONDS. Key: the cluster's id."""

    id: str
    region: str
    heartbeat_at: float
    pools: tuple[GpuPool, ...]
    group: str | None = None
    backend: str = "process"
    attributes: dict[str, str] = field(default_factory=dict)
    draining: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "clusterId": self.id,
            "region": self.region,
            "clusterGroup": self.group,
            "backend": self.backend,
            "attributes": self.attributes,
            "draining": self.draining,
            "heartbeatAt": self.heartbeat_at,
            "pools": [pool.to_dict() for pool in self.pools],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            id=fields.text("clusterId"),
            region=fields.text("region"),
            heartbeat_at=fields.number("heartbeatAt"),
            pools=fields.objects("pools", GpuPool.from_fields),
            group=fields.optional_text("clusterGroup"),
            backend=fields.text("backend", "process"),
            attributes=fields.text_map("attributes"),
            draining=fields.boolean("draining", False),
        )


@dataclass(frozen=True)
class DemandReport(Record):
    """One gateway's counters of a version since its start: only differences mean something.

    `busy_seconds` is the integral of requests that wait here over time.
    """

    gateway_id: str
    version_id: str
    at: float
    arrivals: int
    completions: int
    waiting: int
    busy_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "gatewayId": self.gateway_id,
            "functionVersionId": self.version_id,
            "at": self.at,
            "arrivals": self.arrivals,
            "completions": self.completions,
            "waiting": self.waiting,
            "busySeconds": self.busy_seconds,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            gateway_id=fields.text("gatewayId"),
            version_id=fields.id("functionVersionId"),
            at=fields.number("at"),
            arrivals=fields.integer("arrivals", maximum=2**62),
            completions=fields.integer("completions", maximum=2**62),
            waiting=fields.integer("waiting"),
            busy_seconds=fields.number("busySeconds"),
        )


@dataclass(frozen=True)
class Event(Record):
    """Something that changed, for people: `nvcf events` and `nvcf scaling` list them.

    `kind` is one of `deployment`, `scaling`, `instance`, `cluster`; `data` holds details as strings.
    """

    at: float
    kind: str
    version_id: str
    text: str
    function_name: str | None = None
    data: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "kind": self.kind,
            "functionVersionId": self.version_id,
            "functionName": self.function_name,
            "text": self.text,
            "data": self.data,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            at=fields.number("at"),
            kind=fields.text("kind"),
            version_id=fields.text("functionVersionId"),
            text=fields.text("text"),
            function_name=fields.optional_text("functionName"),
            data=fields.text_map("data"),
        )
