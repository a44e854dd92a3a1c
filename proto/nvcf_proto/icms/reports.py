"""What agents send to the control plane over HTTP, and what they get (protocol.md, section 6.5).

Only HTTP 200 means success to NVIDIA's agent. Unknown members are ignored everywhere.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from msgspec import Meta, field

from nvcf_proto.icms.messages import MOST_GPUS, InstanceId
from nvcf_proto.models import Record
from nvcf_proto.models.record import Count, Text

LONGEST_LOG = 16 * 1024
HELD_REQUESTS = 16_384
# Every type becomes a pool in the live record, which each heartbeat writes and the autoscaler reads.
MOST_GPU_NAMES = 32
MOST_TYPES = 128
MOST_ATTRIBUTES = 256
MOST_PARTS = 16


class ClusterStatus(StrEnum):
    """Whether a cluster takes new instances; part of its registration."""

    READY = "READY"
    CORDON = "CORDON"
    CORDON_AND_DRAIN = "CORDON_AND_DRAIN"


class MaintenanceMode(StrEnum):
    """The same, as heartbeats say it."""

    NONE = "None"
    CORDON = "CordonOnly"
    CORDON_AND_DRAIN = "CordonAndDrain"


class HeartbeatAction(StrEnum):
    """The answer to a heartbeat. At SELF_DESTRUCT an agent ends all instances and falls silent."""

    ACCEPTED = "ACCEPTED"
    SELF_DESTRUCT = "SELF_DESTRUCT"


class InstanceState(StrEnum):
    """State of an instance in a report."""

    STARTING = "starting"
    RUNNING = "running"
    SHUTTING_DOWN = "shutting-down"
    TERMINATED = "terminated"


class RequestState(StrEnum):
    """Whether a request still has an instance."""

    ACTIVE = "active"
    CLOSED = "closed"


class Status(StrEnum):
    """Status of a request or instance in an acknowledgement or report."""

    PENDING = "pending-fulfillment"
    FULFILLED = "fulfilled"
    TERMINATED_BY_USER = "instance-terminated-by-user"
    TERMINATED_BY_SERVICE = "instance-terminated-by-service"
    NO_CAPACITY = "instance-terminated-no-capacity"


class InstanceType(Record, frozen=True, kw_only=True):
    """One instance type that a cluster offers: `NCP.GPU.H100_2x`, two H100 on one node."""

    name: Text
    value: Text = ""
    description: Text = ""
    default: bool = False
    cpu: Text | None = None
    cpu_cores: Count | None = None
    system_memory: Text | None = None
    gpu_memory: Text | None = None
    gpu_count: Annotated[int, Meta(ge=0, le=MOST_GPUS)] = 0
    cpu_arch: Text | None = None
    storage: Text | None = None
    os: Text | None = None
    driver_version: Text | None = None
    node_type: Text | None = None
    max_instances: Count | None = None
    unschedulable_capacity: Count | None = None


class Gpu(Record, frozen=True, kw_only=True):
    """GPUs of one name with their instance types. [ext] The name `CPU` means instances without a GPU."""

    name: Text
    capacity: Count | None = None
    instance_types: Annotated[tuple[InstanceType, ...], Meta(max_length=MOST_TYPES)] = ()

    @property
    def devices(self) -> int:
        """How many there are: NVIDIA's agent says only how many instances of each type fit."""
        if self.capacity is not None:
            return self.capacity
        most = (max(1, each.gpu_count) * (each.max_instances or 0) for each in self.instance_types)
        return max(most, default=0)


class Registration(Record, frozen=True, kw_only=True):
    """Body of `PUT /v1/nvca/clusters/{id}/register`."""

    status: Text = ClusterStatus.READY.value
    k8s_version: Text | None = None
    gpus: Annotated[tuple[Gpu, ...], Meta(max_length=MOST_GPU_NAMES)] = ()
    allow_cluster_targeting: bool = False
    allow_task_cluster_creation_queues: bool = False
    nvca_version: Text | None = None
    backend: Text | None = None
    """[ext] `process` or `kubernetes`."""
    heartbeat_seconds: Annotated[float, Meta(gt=0.0, le=3600.0)] | None = None
    """[ext] How often this agent sends heartbeats. Without it, 300 s is assumed."""
    attributes: Annotated[dict[str, str], Meta(max_length=MOST_ATTRIBUTES)] = field(default_factory=dict)
    """[ext] What deployments can require of a cluster."""


class Credentials(Record, frozen=True, kw_only=True):
    """Answer of `GET /v1/nvca/clusters/{id}/credentials`. Empty maps: the queues are in NATS."""

    creation_queue: dict[str, Any] = field(default_factory=dict)
    cluster_creation_queue: dict[str, Any] = field(default_factory=dict)
    cluster_creation_queue_for_tasks: dict[str, Any] = field(default_factory=dict)
    termination_queue: Text | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON members; the termination queue is null."""
        return {**super().to_dict(), "terminationQueue": self.termination_queue}


class RegistrationAnswer(Record, frozen=True, kw_only=True):
    """Answer to a registration. `cluster_name` and `region` are [ext]."""

    cluster_id: Text
    cluster_group_id: Text
    credentials: Credentials = field(default_factory=Credentials)
    cluster_name: Text | None = None
    region: Text | None = None


class GpuUsage(Record, frozen=True):
    """GPUs of one name: how many there are, how many requests hold, how many are free."""

    capacity: Count = 0
    allocated: Count = 0
    available: Count = 0


class Heartbeat(Record, frozen=True, kw_only=True):
    """Body of `POST /v1/nvca/clusters/{id}/heartbeat`."""

    status: Text = "healthy"
    upgrade_status: Text | None = None
    gpu_usage: dict[str, GpuUsage] = field(default_factory=dict)
    cluster_owner_nca_id: Text | None = field(name="clusterOwnerNcaID", default=None)
    nvca_agent_version: Text | None = None
    nvca_operator_version: Text | None = None
    cluster_name: Text | None = None
    maintenance_mode: Text = MaintenanceMode.NONE.value
    draining: bool = False
    """[ext] The agent is stopping: no new instances."""


class HeartbeatAnswer(Record, frozen=True):
    """Answer to a heartbeat.

    [ext] `maintenance`: what an administrator has asked of the cluster. [ext] `report_again`: the control
    plane knows of fewer instances than the cluster has; all are to be reported, now.
    """

    if_given: ClassVar[frozenset[str]] = frozenset(("reportAgain",))

    action: HeartbeatAction = HeartbeatAction.ACCEPTED
    maintenance: Text | None = None
    report_again: bool = False


class Acknowledgement(Record, frozen=True, kw_only=True):
    """Body of `PUT /v1/sirs/{requestId}`: the agent has taken the request on."""

    instance_count: Count = 1
    message_batch_id: Text | None = None
    status: Text = Status.PENDING.value


class HealthInfo(Record, frozen=True):
    """Why an instance is unhealthy or ended; empty in most reports."""

    error_log: Annotated[str, Meta(max_length=LONGEST_LOG)] | None = None
    error_source: Text | None = None


class ProcessDetails(Record, frozen=True, kw_only=True):
    """[ext] What the agent knows of a running instance, for people and tools."""

    pid: Count | None = None
    restarts: Count = 0
    log_path: Text | None = None
    health_port: Count | None = None
    visible_devices: Text | None = None
    ready_at: float | None = None
    node: Text | None = None
    category: Text | None = None
    reason: Annotated[str, Meta(max_length=LONGEST_LOG)] | None = None
    start_parts: Annotated[dict[str, float], Meta(max_length=MOST_PARTS)] = field(default_factory=dict)
    """Seconds of each part of the start, in order; the first one begins with the creation message."""
    function_version_id: Text | None = None
    gpu_specification_id: Text | None = None
    """What it was ordered for, as the creation message said."""
    exit_code: int | None = None
    """Of a task whose process has ended."""


class StatusReport(Record, frozen=True, kw_only=True):
    """Body of `POST /v1/sirs/{requestId}/{instanceId}`."""

    status: Text
    instance_state: InstanceState
    request_state: RequestState = RequestState.ACTIVE
    action: Text | None = None
    termination_cause: Text | None = None
    system_failure: Text | None = None
    health_info: HealthInfo = field(default_factory=HealthInfo)
    instance_ips: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    details: ProcessDetails | None = None
    """[ext]"""
    held_requests: Annotated[tuple[Text, ...], Meta(max_length=HELD_REQUESTS)] = ()
    """[ext] Acknowledgement subjects of requests that the ended instance still held, to be queued again."""


class KnownInstance(Record, frozen=True, kw_only=True):
    """An instance as the control plane knows it."""

    instance_id: InstanceId
    request_id: Text
    instance_state: InstanceState


class KnownInstances(Record, frozen=True):
    """Answer of `GET /v1/si/clusters/{id}/instances`."""

    instances: tuple[KnownInstance, ...] = ()


class PrefetchImage(Record, frozen=True, kw_only=True):
    """[ext] An image that nodes of an instance type are to have, with the account's logins for images.

    `credentials` are in the form of CONTAINER_REGISTRIES_CREDENTIALS.
    """

    container_image: Text
    instance_type_value: Text
    credentials: str = ""


class PrefetchImages(Record, frozen=True):
    """[ext] Answer of `GET /v1/nvca/clusters/{id}/prefetch`."""

    images: tuple[PrefetchImage, ...] = ()


class Introspection(Record, frozen=True):
    """Body of `POST /v1/nvca/tokens/introspect`."""

    token: Annotated[str, Meta(min_length=1, max_length=64 * 1024)]


class Jwks(Record, frozen=True):
    """Body of `PUT /v1/nvca/clusters/{id}/jwks`: the key set as text of JSON."""

    jwks: Annotated[str, Meta(max_length=64 * 1024)]
