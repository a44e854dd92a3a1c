"""GPU specifications: how many instances of which kind a deployment has, and where."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, field
from msgspec.structs import force_setattr

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.record import Id, Record
from nvcf_proto.models.scaling import AutoscalingConfiguration

ATTRIBUTE_PRESENT = "true"
"""Value of a cluster's attribute that a specification names without a value."""
MAX_DEPTH = 64
"""Levels of a chart's values."""
POLICIES = ("Default", "Unrestricted")

Kind = Annotated[str, Meta(max_length=128)]
Filter = Annotated[str, Meta(min_length=1, max_length=128)]
Word = Annotated[str, Meta(min_length=1, max_length=253)]


class KubernetesType(Record, frozen=True, forbid_unknown_fields=True):
    """A kind of objects that a chart may have besides the usual ones."""

    group: Word
    version: Word
    kind: Word


ExtraTypes = Annotated[tuple[KubernetesType, ...], Meta(min_length=1, max_length=64)]


class HelmValidationPolicy(Record, frozen=True, forbid_unknown_fields=True):
    """How a chart is checked before it is installed."""

    name: Annotated[str, Meta(max_length=64, description=f"One of {', '.join(POLICIES)}.")]
    extra_kubernetes_types: ExtraTypes | None = None

    def __post_init__(self) -> None:
        if self.name.capitalize() not in POLICIES:
            raise InvalidRecord("name", f"expected one of {', '.join(POLICIES)}")
        force_setattr(self, "name", self.name.capitalize())


class DeploymentSpecification(Record, frozen=True):
    """How many instances of which kind; the JSON form is the management API's.

    `backend` is the older name of `cluster_group`, `availability_zones` of `clusters`. `attributes` are
    names with values [ext], or names alone. `prefetch` [ext]: all nodes that may run it pull its image.
    """

    if_given: ClassVar[frozenset[str]] = frozenset(
        ("attributes", "availabilityZones", "gpusPerInstance", "prefetch")
    )

    gpu: Kind = "CPU"
    instance_type: Kind = "process"
    min_instances: Annotated[int, Meta(ge=0, le=1000)] = 1
    max_instances: Annotated[int, Meta(ge=1, le=1000, description="At least minInstances.")] = 0
    max_request_concurrency: Annotated[int, Meta(ge=1, le=16_384)] = 1
    clusters: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    cluster_group: Kind | None = None
    attributes: dict[str, str] | tuple[str, ...] = field(default_factory=dict)
    gpus_per_instance: Annotated[int, Meta(ge=0, le=64)] = 0
    specification_id: Id | None = field(name="gpuSpecificationId", default=None)
    backend: Filter | None = None
    availability_zones: tuple[str, ...] = ()
    configuration: dict[str, Any] | None = None
    preferred_order: Annotated[int, Meta(ge=1, le=99)] | None = None
    cpu_arch: Filter | None = None
    os: Filter | None = None
    driver_version: Filter | None = None
    storage: Filter | None = None
    system_memory: Filter | None = None
    gpu_memory: Filter | None = None
    autoscaling: AutoscalingConfiguration | None = field(name="autoscalingConfiguration", default=None)
    helm_validation_policy: HelmValidationPolicy | None = None
    prefetch: bool = False

    def __post_init__(self) -> None:
        least = max(1, self.min_instances)
        if self.max_instances == 0:
            force_setattr(self, "max_instances", least)
        elif self.max_instances < least:
            raise InvalidRecord("maxInstances", f"expected {least} to 1000, got {self.max_instances}")
        if _is_deeper(self.configuration, MAX_DEPTH):
            raise InvalidRecord("configuration", f"more than {MAX_DEPTH} levels deep")
        if self.backend is not None and self.clusters:
            raise InvalidRecord("backend", "cannot be given together with clusters")
        if self.backend is not None and self.cluster_group not in (None, self.backend):
            raise InvalidRecord("backend", "clusterGroup names another group: give one of them")
        if self.availability_zones and self.clusters:
            raise InvalidRecord("availabilityZones", "cannot be given together with clusters")

    def id(self, index: int) -> str:
        """Return the specification's id within its deployment: its kind and its place in the order."""
        return f"{index}-{self.gpu}-{self.instance_type}"

    @property
    def group(self) -> str | None:
        """The cluster group that it is limited to."""
        return self.cluster_group or self.backend

    @property
    def places(self) -> tuple[str, ...]:
        """The clusters that it is limited to."""
        return self.clusters or self.availability_zones

    @property
    def required_attributes(self) -> dict[str, str]:
        """What a cluster must have: attributes by name, and the kind of its nodes."""
        given = self.attributes
        named = given if isinstance(given, dict) else dict.fromkeys(given, ATTRIBUTE_PRESENT)
        nodes = {
            "cpuArch": self.cpu_arch,
            "os": self.os,
            "driverVersion": self.driver_version,
            "storage": self.storage,
            "systemMemory": self.system_memory,
            "gpuMemory": self.gpu_memory,
        }
        return {**named, **{name: value for name, value in nodes.items() if value is not None}}

    @property
    def digest(self) -> str:
        """What an instance is started with beside its kind, in short; empty without a configuration."""
        if self.configuration is None and self.helm_validation_policy is None:
            return ""
        policy = self.helm_validation_policy and self.helm_validation_policy.to_dict()
        text = msgspec.json.encode([self.configuration, policy], order="sorted")
        return f"-{hashlib.sha256(text).hexdigest()[:12]}"


def _is_deeper(value: object, levels: int) -> bool:
    """Return whether objects and lists are nested deeper than that. Without recursion, for any depth."""
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(each, (dict, list)) for each in level)
