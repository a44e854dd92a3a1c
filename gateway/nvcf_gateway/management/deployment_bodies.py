"""Bodies of requests that change deployments."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from msgspec import Meta, field

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import DeploymentSpecification, ScalingPreferences
from nvcf_proto.models.record import Record
from nvcf_proto.models.scaling import AutoscalingConfiguration


class AutoscalingPolicy(StrEnum):
    """Whose autoscaling configuration holds."""

    CUSTOM = "CUSTOM_CONFIGURATION"
    PLATFORM = "PLATFORM_CONFIGURATION"


_FIXED = "cannot be changed here: deploy the version anew, or send PUT to its deployment"


class SpecificationUpdate(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be changed of one GPU specification. What is left out stays."""

    hints: ClassVar[dict[str, str]] = dict.fromkeys(
        (
            *("gpu", "instanceType", "backend", "clusters", "availabilityZones", "regions", "attributes"),
            *("preferredOrder", "maxRequestConcurrency", "configuration", "gpuSpecificationId"),
        ),
        _FIXED,
    )

    min_instances: Annotated[int, Meta(ge=0, le=1000)] | None = None
    max_instances: Annotated[int, Meta(ge=1, le=1000)] | None = None
    autoscaling: AutoscalingConfiguration | None = field(name="autoscalingConfiguration", default=None)
    policy: AutoscalingPolicy | None = field(name="autoscalingConfigurationPolicy", default=None)

    def __post_init__(self) -> None:
        given: tuple[Any, ...] = (self.min_instances, self.max_instances, self.autoscaling, self.policy)
        if all(value is None for value in given):
            raise InvalidRecord("minInstances", "name at least one field to change")
        if self.policy is AutoscalingPolicy.PLATFORM and self.autoscaling is not None:
            reason = f"cannot be given together with {AutoscalingPolicy.PLATFORM.value}"
            raise InvalidRecord("autoscalingConfiguration", reason)


class AnyObject(Record, frozen=True):
    """A JSON object that is checked only once it is complete."""

    members: dict[str, Any]

    @classmethod
    def from_dict(cls, members: Any, path: str = "") -> Self:
        """Keep the members as they are."""
        return cls(members)


def check_scaling(
    specifications: Sequence[DeploymentSpecification], scaling: ScalingPreferences | None, path: str = ""
) -> None:
    """Raise InvalidRecord if a deployment has two rules for its scaling; `path` is the field to name."""
    if scaling is None or scaling.scale_up is None:
        return
    for index, each in enumerate(specifications):
        if each.autoscaling is not None:
            name = path or f"deploymentSpecifications[{index}].autoscalingConfiguration"
            raise InvalidRecord(name, "cannot be given together with scaling.scaleUpDetails")
