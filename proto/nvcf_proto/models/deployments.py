"""Deployments: versions that shall have instances, of which kind and how many."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.base import Record
from nvcf_proto.records import Fields

DEPLOYMENTS_BUCKET = "nvcf_deployments"


@dataclass(frozen=True)
class DeploymentSpecification(Record):
    """How many instances of which kind; the JSON form is the management API's."""

    gpu: str = "CPU"
    instance_type: str = "process"
    min_instances: int = 1
    max_instances: int = 1
    max_request_concurrency: int = 1
    clusters: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    cluster_group: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    gpus_per_instance: int = 0

    def id(self, index: int) -> str:
        """The specification's id within its deployment: its kind and its place in the preferred order."""
        return f"{index}-{self.gpu}-{self.instance_type}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "gpu": self.gpu,
            "instanceType": self.instance_type,
            "minInstances": self.min_instances,
            "maxInstances": self.max_instances,
            "maxRequestConcurrency": self.max_request_concurrency,
            "clusters": list(self.clusters),
            "regions": list(self.regions),
            **({} if self.cluster_group is None else {"clusterGroup": self.cluster_group}),
            **({"attributes": self.attributes} if self.attributes else {}),
            **({"gpusPerInstance": self.gpus_per_instance} if self.gpus_per_instance else {}),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        minimum = fields.integer("minInstances", 1, maximum=1000)
        return cls(
            gpu=fields.text("gpu", "CPU", max_length=128),
            instance_type=fields.text("instanceType", "process", max_length=128),
            min_instances=minimum,
            max_instances=fields.integer(
                "maxInstances", max(1, minimum), minimum=max(1, minimum), maximum=1000
            ),
            max_request_concurrency=fields.integer("maxRequestConcurrency", 1, minimum=1, maximum=1024),
            clusters=fields.texts("clusters"),
            regions=fields.texts("regions"),
            cluster_group=fields.optional_text("clusterGroup", max_length=128),
            attributes=fields.text_map("attributes"),
            gpus_per_instance=fields.integer("gpusPerInstance", 0, maximum=64),
        )


@dataclass(frozen=True)
class ScalingRule(Record):
    """ScalingDetails of section 1: past `threshold` percent the instance count is multiplied by `factor`.

    `stickiness_size` and `stickiness_threshold` are seconds (below 1 h, the second below the first).
    """

    factor: float
    threshold: int
    metric: str = "utilization"
    stickiness_size: float | None = None
    stickiness_threshold: float | None = None

    def to_dict(self) -> dict[str, Any]:
        rule: dict[str, Any] = {"metric": self.metric, "factor": self.factor, "threshold": self.threshold}
        if self.stickiness_size is not None:
            rule["stickiness"] = {"size": self.stickiness_size, "threshold": self.stickiness_threshold}
        return rule

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        fields.only(("metric", "factor", "threshold", "stickiness"))
        size = threshold = None
        if fields.has("stickiness"):
            stickiness = fields.object("stickiness")
            size, threshold = stickiness.number("size"), stickiness.number("threshold")
            if not 0 < size < 3600:
                raise InvalidRecord(stickiness.path("size"), "expected above 0 and below 3600 seconds")
            if not 0 <= threshold < size:
                raise InvalidRecord(stickiness.path("threshold"), "expected at least 0 and below size")
        return cls(
            factor=fields.number("factor"),
            threshold=fields.integer("threshold", maximum=100),
            metric=fields.text("metric", "utilization", choices=("utilization",)),
            stickiness_size=size,
            stickiness_threshold=threshold,
        )


@dataclass(frozen=True)
class ScalingPreferences(Record):
    """What a deployment says about scaling beyond its bounds; None: the policy's own choice.

    `wait_slo` and `scale_to_zero_delay` are seconds, `target_utilisation` is a share (0..1), `keep_warm`
    a number of instances.
    """

    wait_slo: float | None = None
    target_utilisation: float | None = None
    scale_to_zero_delay: float | None = None
    keep_warm: int = 0
    scale_up: ScalingRule | None = None
    scale_down: ScalingRule | None = None

    def to_dict(self) -> dict[str, Any]:
        members = {
            "waitSlo": self.wait_slo,
            "targetUtilisation": self.target_utilisation,
            "scaleToZeroDelay": self.scale_to_zero_delay,
            "keepWarm": self.keep_warm,
            "scaleUpDetails": self.scale_up.to_dict() if self.scale_up else None,
            "scaleDownDetails": self.scale_down.to_dict() if self.scale_down else None,
        }
        return {key: value for key, value in members.items() if value is not None}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        fields.only(
            (
                "waitSlo",
                "targetUtilisation",
                "scaleToZeroDelay",
                "keepWarm",
                "scaleUpDetails",
                "scaleDownDetails",
            )
        )
        up, down = fields.has("scaleUpDetails"), fields.has("scaleDownDetails")
        if up != down:
            raise InvalidRecord(
                fields.path("scaleUpDetails"), "scaleUpDetails and scaleDownDetails belong together"
            )
        return cls(
            wait_slo=_bounded(fields, "waitSlo", 0.001, 3600.0),
            target_utilisation=_bounded(fields, "targetUtilisation", 0.01, 1.0),
            scale_to_zero_delay=_bounded(fields, "scaleToZeroDelay", 0.0, 7 * 24 * 3600.0),
            keep_warm=fields.integer("keepWarm", 0, maximum=1000),
            scale_up=ScalingRule.from_fields(fields.object("scaleUpDetails")) if up else None,
            scale_down=ScalingRule.from_fields(fields.object("scaleDownDetails")) if down else None,
        )


def _bounded(fields: Fields, name: str, minimum: float, maximum: float) -> float | None:
    if not fields.has(name):
        return None
    value = fields.number(name)
    if not minimum <= value <= maximum:
        raise InvalidRecord(fields.path(name), f"expected {minimum:g} to {maximum:g}, got {value:g}")
    return value


def _optional_count(fields: Fields, name: str, maximum: int) -> int | None:
    return fields.integer(name, minimum=1, maximum=maximum) if fields.has(name) else None


@dataclass(frozen=True)
class Deployment(Record):
    """A version that shall have instances. Key: the version's id; no record = not deployed.

    `keep_queued` [ext]: requests still unanswered at the end of the poll time stay, and can be polled.
    `max_queue_depth`: requests that may be queued or in work; `max_body_bytes`: size of one request's body;
    None: only the contract's and the installation's bounds.
    """

    version_id: str
    function_id: str
    created_at: float
    specifications: tuple[DeploymentSpecification, ...]
    keep_queued: bool = True
    max_queue_depth: int | None = None
    max_body_bytes: int | None = None
    scaling: ScalingPreferences | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "functionVersionId": self.version_id,
            "functionId": self.function_id,
            "createdAt": self.created_at,
            "deploymentSpecifications": [spec.to_dict() for spec in self.specifications],
            "keepQueued": self.keep_queued,
            "maxQueueDepth": self.max_queue_depth,
            "maxBodyBytes": self.max_body_bytes,
            "scaling": None if self.scaling is None else self.scaling.to_dict(),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            version_id=fields.id("functionVersionId"),
            function_id=fields.id("functionId"),
            created_at=fields.number("createdAt"),
            specifications=fields.objects("deploymentSpecifications", DeploymentSpecification.from_fields),
            keep_queued=fields.boolean("keepQueued", True),
            max_queue_depth=_optional_count(fields, "maxQueueDepth", 100_000),
            max_body_bytes=_optional_count(fields, "maxBodyBytes", 2**63 - 1),
            scaling=ScalingPreferences.from_fields(fields.object("scaling"))
            if fields.has("scaling")
            else None,
        )
