"""The compute plane's records and core messages: clusters, demand, wake-ups, events.

See protocol.md, sections 6.7 and 6.8. What agents send and receive is in `nvcf_proto.icms`.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from msgspec import Meta, field

from nvcf_proto.icms.reports import Gpu
from nvcf_proto.models import Record
from nvcf_proto.models.record import Count, Id, Text
from nvcf_proto.stores import EVENTS

CLUSTERS_BUCKET = "nvcf_clusters"
REGISTERED_CLUSTERS_BUCKET = "nvcf_registered_clusters"
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
EVENT_MAX_AGE_SECONDS = 7 * 24 * 3600
EVENT_MAX_COUNT = 100_000

_NANOSECONDS = 1_000_000_000
_ACCOUNT_EVENTS = uuid.UUID("0d1b9a1c-6f0e-4e5b-8a53-3d6f6f0f4c11")


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


Counter = Annotated[int, Meta(ge=0, le=2**62)]


class GpuPool(Record, frozen=True):
    """What a cluster has of one GPU for one instance type, in single GPUs (or CPU slots).

    `gpus_per_instance` is fixed by the type; 0: the deployment says it. `node_gpus` is the size of a node and
    `nodes` how many there are, where known: one instance needs its GPUs on one node. `attributes` are
    those of the nodes, under the names of the filters of a deployment: `cpuArch`, `os`.
    """

    gpu: Text
    instance_type: Text
    instances_total: Count
    instances_free: Count
    gpus_per_instance: Count = 0
    node_gpus: Count = 0
    nodes: Count = 0
    attributes: dict[str, str] = field(default_factory=dict)


class Cluster(Record, frozen=True):
    """A cluster as it is now: what its agent last registered and reported. Key: the cluster's id.

    Gateways write it at each heartbeat, which comes every `heartbeat_seconds`. `cordoned`: no new instances,
    `draining`: and those that run are ended and replaced elsewhere.
    """

    id: Text = field(name="clusterId")
    region: Text
    heartbeat_at: float
    pools: tuple[GpuPool, ...] = ()
    group: Text | None = field(name="clusterGroup", default=None)
    backend: Text = "process"
    attributes: dict[str, str] = field(default_factory=dict)
    draining: bool = False
    name: Text = field(name="clusterName", default="")
    nca_id: Text = ""
    authorized_nca_ids: tuple[Text, ...] = ("*",)
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    cordoned: bool = False
    healthy: bool = True
    agent_version: Text | None = None
    group_id: Text = field(name="clusterGroupId", default="")

    @property
    def label(self) -> str:
        """Name for people, the id if it has none."""
        return self.name or self.id

    @property
    def group_name(self) -> str:
        """Name of its group; a cluster without a group is a group of its own."""
        return self.group or self.label

    def serves(self, nca_id: str) -> bool:
        """Return whether functions of an account may run there."""
        return _serves(self, nca_id)

    @property
    def silent_after(self) -> float:
        """Seconds without a heartbeat after which it gets no new instances."""
        return max(SILENT_AFTER_SECONDS, 2 * self.heartbeat_seconds)


class RegisteredCluster(Record, frozen=True, kw_only=True):
    """A cluster as an administrator registered it, with its identity. Key: the cluster's id.

    Its agent proves its identity by an API key bound to the cluster, or by a token signed by a key of `jwks`.
    """

    id: Text = field(name="clusterId")
    name: Text = field(name="clusterName")
    nca_id: Text
    group: Text = field(name="clusterGroupName", default="")
    group_id: Text = field(name="clusterGroupId", default="")
    region: Text = "local"
    description: Text = field(name="clusterDescription", default="")
    authorized_nca_ids: Annotated[tuple[Text, ...], Meta(max_length=256)] = field(
        name="authorizedNCAIds", default=("*",)
    )
    cloud_provider: Text = "ON-PREM"
    attributes: dict[str, str] = field(default_factory=dict)
    jwks: Annotated[str, Meta(max_length=64 * 1024)] | None = None
    jwks_from_agent: bool = False
    """The agent has put another key set than the administrator: a rotation drops it."""
    oidc_issuer: Text | None = None
    created_at: float = 0.0
    maintenance: Text = "None"
    evicted: bool = False
    """It was deleted: the answer to its next heartbeat is SELF_DESTRUCT."""
    evicted_at: float | None = None
    evicted_keys: tuple[Text, ...] = ()
    """Ids of its agent's keys at that time: nobody else is told."""
    gpus: tuple[Gpu, ...] = ()
    """As its agent last registered."""
    heartbeat_seconds: float = 300.0
    agent_version: Text | None = None
    backend: Text = "kubernetes"
    agent_attributes: dict[str, str] = field(default_factory=dict)

    def serves(self, nca_id: str) -> bool:
        """Return whether functions of an account may run there."""
        return _serves(self, nca_id)


def _serves(cluster: Cluster | RegisteredCluster, nca_id: str) -> bool:
    return nca_id == cluster.nca_id or not {"*", nca_id}.isdisjoint(cluster.authorized_nca_ids)


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
