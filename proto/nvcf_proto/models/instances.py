"""Instances: running copies of a version."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from nvcf_proto.models.base import Record
from nvcf_proto.models.kinds import InstanceState
from nvcf_proto.records import Fields

INSTANCES_BUCKET = "nvcf_instances"


@dataclass(frozen=True)
class Instance(Record):
    """One running copy of a version, reported by the agent that owns it. Key: `VERSION.INSTANCE`.

    `category` is the kind of a FAILED one's failure, in one word for programs; its reason begins with it.
    """

    id: str
    function_id: str
    version_id: str
    cluster_id: str
    state: InstanceState
    updated_at: float
    created_at: float
    pid: int | None = None
    restarts: int = 0
    reason: str | None = None
    log_path: str | None = None
    health_port: int | None = None
    ready_at: float | None = None
    specification_id: str | None = None
    gpu: str | None = None
    visible_devices: str | None = None
    draining_since: float | None = None
    category: str | None = None

    @property
    def key(self) -> str:
        """Key in INSTANCES_BUCKET."""
        return f"{self.version_id}.{self.id}"

    def changed(self, now: float, **changes: Any) -> Self:
        """A copy with fields changed and `updated_at` set to `now`."""
        return replace(self, updated_at=now, **changes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "instanceId": self.id,
            "functionId": self.function_id,
            "functionVersionId": self.version_id,
            "clusterId": self.cluster_id,
            "state": self.state.value,
            "createdAt": self.created_at,
            "updatedAt": self.updated_at,
            "readyAt": self.ready_at,
            "pid": self.pid,
            "restarts": self.restarts,
            "reason": self.reason,
            "logPath": self.log_path,
            "healthPort": self.health_port,
            "gpuSpecificationId": self.specification_id,
            "gpu": self.gpu,
            "visibleDevices": self.visible_devices,
            "drainingSince": self.draining_since,
            "category": self.category,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            id=fields.id("instanceId"),
            function_id=fields.id("functionId"),
            version_id=fields.id("functionVersionId"),
            cluster_id=fields.text("clusterId"),
            state=InstanceState(fields.text("state", choices=list(InstanceState))),
            created_at=fields.number("createdAt"),
            updated_at=fields.number("updatedAt"),
            ready_at=fields.number("readyAt") if fields.has("readyAt") else None,
            pid=fields.integer("pid") if fields.has("pid") else None,
            restarts=fields.integer("restarts", 0),
            reason=fields.optional_text("reason"),
            log_path=fields.optional_text("logPath"),
            health_port=fields.integer("healthPort") if fields.has("healthPort") else None,
            specification_id=fields.optional_text("gpuSpecificationId"),
            gpu=fields.optional_text("gpu"),
            visible_devices=fields.optional_text("visibleDevices"),
            draining_since=fields.number("drainingSince") if fields.has("drainingSince") else None,
            category=fields.optional_text("category"),
        )
