"""Deployments: the instances that a version shall have; and instances: those that it has."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID, uuid5

from msgspec import Meta, field

from nvcf_proto.models.record import Count, Id, Record, Text, matching
from nvcf_proto.models.scaling import ScalingPreferences
from nvcf_proto.models.specifications import DeploymentSpecification

DEPLOYMENTS_BUCKET = "nvcf_deployments"
INSTANCES_BUCKET = "nvcf_instances"

QueueDepth = Annotated[int, Meta(ge=1, le=100_000)]
ExecutionSeconds = Annotated[
    int, Meta(ge=1, le=86_400, description="Seconds that one request may run; then its caller gets 504.")
]
DEFAULT_EXECUTION_SECONDS = 3600
LAST_ORDER = 100
"""Place of specifications without a preferred order: after all others, in the order given."""
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
    deployment_id: Id | None = None
    last_updated_at: float | None = None

    @property
    def changed_at(self) -> float:
        """Unix time since which it is as it is."""
        return max(self.created_at, self.last_updated_at or 0.0)


def execution_seconds(deployment: Deployment) -> int:
    """Return how long one request may run."""
    return deployment.max_execution_seconds or DEFAULT_EXECUTION_SECONDS


def specifications_of(deployment: Deployment) -> dict[str, DeploymentSpecification]:
    """Return a deployment's specifications by id, in preferred order; orders and instances name them so.

    The id contains everything that an instance is started with. If that changes, the instance belongs to
    another specification and is replaced.
    """
    return {key: deployment.specifications[index] for index, key in _keys(deployment)}


def _keys(deployment: Deployment) -> list[tuple[int, str]]:
    """Return places and ids of the specifications, in preferred order."""
    seconds = execution_seconds(deployment)
    # Left out where it is the default, so that instances of an earlier release are not replaced.
    limit = "" if seconds == DEFAULT_EXECUTION_SECONDS else f"-{seconds}s"
    keys = []
    for index, spec in enumerate(deployment.specifications):
        started = f"{spec.max_request_concurrency}x{spec.gpus_per_instance}{limit}{spec.digest}"
        keys.append((index, f"{spec.id(index)}-{started}"))
    return sorted(keys, key=lambda each: deployment.specifications[each[0]].preferred_order or LAST_ORDER)


def deployment_id(deployment: Deployment) -> str:
    """Return the deployment's id, one made of its version's id for a record of an earlier release."""
    return deployment.deployment_id or str(uuid5(UUID(deployment.version_id), "deployment"))


def gpu_specification_id(deployment: Deployment, index: int) -> str:
    """Return the public id of a specification, made of its place and kind for one of an earlier release."""
    spec = deployment.specifications[index]
    return spec.specification_id or str(uuid5(UUID(deployment.version_id), spec.id(index)))


def gpu_specification_ids(deployment: Deployment) -> dict[str, str]:
    """Return the public ids by those of `specifications_of`."""
    return {key: gpu_specification_id(deployment, index) for index, key in _keys(deployment)}


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
    in one word for programs; its reason begins with it. An instance that `is_task` has the id of its task as
    function and version, runs once, and ends with an `exit_code`.
    """

    if_given: ClassVar[frozenset[str]] = frozenset(("isTask",))

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
    is_task: bool = False
    exit_code: int | None = None

    @property
    def key(self) -> str:
        """Key in INSTANCES_BUCKET."""
        return f"{self.version_id}.{self.request_id or self.id}"

    def changed(self, now: float, **changes: Any) -> Self:
        """Return a copy with fields changed and `updated_at` set to `now`."""
        return self.replace(updated_at=now, **changes)
