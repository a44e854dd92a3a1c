"""Deployments: the instances that a version shall have; and instances: those that it has."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from msgspec import Meta, field
from msgspec.structs import force_setattr

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.record import Count, Id, Record, Text, matching

DEPLOYMENTS_BUCKET = "nvcf_deployments"
INSTANCES_BUCKET = "nvcf_instances"

Kind = Annotated[str, Meta(max_length=128)]


class DeploymentSpecification(Record, frozen=True):
    """How many instances of which kind; the JSON form is the management API's."""

    gpu: Kind = "CPU"
    instance_type: Kind = "process"
    min_instances: Annotated[int, Meta(ge=0, le=1000)] = 1
    max_instances: Annotated[int, Meta(ge=1, le=1000, description="At least minInstances.")] = 0
    max_request_concurrency: Annotated[int, Meta(ge=1, le=1024)] = 1
    clusters: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    cluster_group: Kind | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    gpus_per_instance: Annotated[int, Meta(ge=0, le=64)] = 0

    def __post_init__(self) -> None:
        least = max(1, self.min_instances)
        if self.max_instances == 0:
            force_setattr(self, "max_instances", least)
        elif self.max_instances < least:
            raise InvalidRecord("maxInstances", f"expected {least} to 1000, got {self.max_instances}")

    def id(self, index: int) -> str:
        """Return the specification's id within its deployment: its kind and its place in the order."""
        return f"{index}-{self.gpu}-{self.instance_type}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON members, without attributes and GPUs when there are none."""
        members = super().to_dict()
        return {
            key: value
            for key, value in members.items()
            if value or key not in ("attributes", "gpusPerInstance")
        }


class Stickiness(Record, frozen=True):
    """For how long a rule's threshold must have been passed: `threshold` of the last `size` seconds."""

    size: Annotated[float, Meta(gt=0, lt=3600)]
    threshold: Annotated[float, Meta(ge=0, description="Below size.")]

    def __post_init__(self) -> None:
        if self.threshold >= self.size:
            raise InvalidRecord("threshold", "expected at least 0 and below size")


class ScalingRule(Record, frozen=True, forbid_unknown_fields=True):
    """ScalingDetails: past `threshold` percent the instance count is multiplied by `factor`.

    See protocol.md, section 1.6.
    """

    factor: float
    threshold: Annotated[int, Meta(ge=0, le=100)]
    metric: Literal["utilization"] = "utilization"
    stickiness: Stickiness | None = None


class ScalingPreferences(Record, frozen=True, forbid_unknown_fields=True):
    """A deployment's wishes about scaling, beyond its bounds; None: the policy's own choice.

    `wait_slo` and `scale_to_zero_delay` are seconds, `target_utilisation` is a share (0..1), `keep_warm`
    a number of instances.
    """

    wait_slo: (
        Annotated[float, Meta(ge=0.001, le=3600.0, description="Seconds a request may wait.")] | None
    ) = None
    target_utilisation: Annotated[float, Meta(ge=0.01, le=1.0)] | None = None
    scale_to_zero_delay: (
        Annotated[float, Meta(ge=0.0, le=604_800.0, description="Seconds without a request.")] | None
    ) = None
    keep_warm: Annotated[int, Meta(ge=0, le=1000)] = 0
    scale_up: ScalingRule | None = field(name="scaleUpDetails", default=None)
    scale_down: ScalingRule | None = field(name="scaleDownDetails", default=None)

    def __post_init__(self) -> None:
        if (self.scale_up is None) != (self.scale_down is None):
            raise InvalidRecord("scaleUpDetails", "scaleUpDetails and scaleDownDetails belong together")


QueueDepth = Annotated[int, Meta(ge=1, le=100_000)]
ExecutionSeconds = Annotated[
    int, Meta(ge=1, le=86_400, description="Seconds that one request may run; then its caller gets 504.")
]
DEFAULT_EXECUTION_SECONDS = 3600
BodyBytes = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class Deployment(Record, frozen=True):
    """A version that shall have instances. Key: the version's id; no record = not deployed.

    `keep_queued` [ext]: requests still unanswered at the end of the poll time stay, and can be polled.
    `max_queue_depth`: requests that may be queued or in flight; `max_body_bytes`: size of one request's body;
    None: only the contract's and the installation's bounds. `max_execution_seconds` [ext]: how long one
    request may run; None: DEFAULT_EXECUTION_SECONDS.
    """

    version_id: Id = field(name="functionVersionId")
    function_id: Id
    created_at: float
    specifications: tuple[DeploymentSpecification, ...] = field(name="deploymentSpecifications", default=())
    keep_queued: bool = True
    max_queue_depth: QueueDepth | None = None
    max_body_bytes: BodyBytes | None = None
    max_execution_seconds: ExecutionSeconds | None = None
    scaling: ScalingPreferences | None = None


def execution_seconds(deployment: Deployment) -> int:
    """Return how long one request may run."""
    return deployment.max_execution_seconds or DEFAULT_EXECUTION_SECONDS


def specifications_of(deployment: Deployment) -> dict[str, DeploymentSpecification]:
    """Return a deployment's specifications by id, in preferred order; orders and instances name them so.

    The id contains everything that an instance is started with. If that changes, the instance belongs to
    another specification and is replaced.
    """
    seconds = execution_seconds(deployment)
    # Left out where it is the default, so that instances of an earlier release are not replaced.
    limit = "" if seconds == DEFAULT_EXECUTION_SECONDS else f"-{seconds}s"
    return {
        f"{spec.id(index)}-{spec.max_request_concurrency}x{spec.gpus_per_instance}{limit}": spec
        for index, spec in enumerate(deployment.specifications)
    }


class InstanceState(StrEnum):
    """Life of an instance."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    TERMINATING = "TERMINATING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class Instance(Record, frozen=True):
    """One running copy of a version, reported by the agent that owns it. Key: `VERSION.REQUEST`.

    `id` is the agent's; until its first report, it is the id that is expected. `request_id` is that of the
    order, one for each instance. `acknowledged_at`: its agent has taken the order on. `released_at`: the
    agent has nothing of it left, so what it held is free. `devices` are the GPUs, or CPU slots, that it takes
    of its cluster, by its order. `category` is the kind of a FAILED one's failure,
    in one word for programs; its reason begins with it.
    """

    id: Annotated[str, matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", max_length=128)] = field(
        name="instanceId"
    )
    function_id: Id
    version_id: Id = field(name="functionVersionId")
    cluster_id: Text
    state: InstanceState
    updated_at: float
    created_at: float
    pid: Count | None = None
    restarts: Count = 0
    reason: Text | None = None
    log_path: Text | None = None
    health_port: Count | None = None
    ready_at: float | None = None
    specification_id: Text | None = field(name="gpuSpecificationId", default=None)
    gpu: Text | None = None
    visible_devices: Text | None = None
    draining_since: float | None = None
    category: Text | None = None
    request_id: Text = ""
    acknowledged_at: float | None = None
    reported_at: float | None = None
    released_at: float | None = None
    devices: Count = 1

    @property
    def key(self) -> str:
        """Key in INSTANCES_BUCKET."""
        return f"{self.version_id}.{self.request_id or self.id}"

    def changed(self, now: float, **changes: Any) -> Self:
        """Return a copy with fields changed and `updated_at` set to `now`."""
        return self.replace(updated_at=now, **changes)
