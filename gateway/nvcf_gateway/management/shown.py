"""Records as the management API shows them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nvcf_gateway.http.responses import timestamp
from nvcf_proto.compute import Cluster
from nvcf_proto.models import (
    Deployment,
    DeploymentSpecification,
    FunctionVersion,
    Instance,
    InstanceState,
    RateLimit,
    Record,
    VersionStatus,
)
from nvcf_proto.models.deployments import (
    deployment_id,
    execution_seconds,
    gpu_specification_id,
    gpu_specification_ids,
    specifications_of,
)

INSTANCE_TIMES = ("createdAt", "updatedAt", "readyAt")
MAX_FAILURES = 20

# Nothing of these runs any more; their records stay readable for some minutes.
_ENDED = (InstanceState.COMPLETED, InstanceState.FAILED)


def shown(record: Record, *times: str) -> dict[str, Any]:
    """Return the JSON members of a record, those named in `times` as RFC 3339."""
    members = record.to_dict()
    return {name: timestamp(value) if name in times else value for name, value in members.items()}


def version_shown(
    version: FunctionVersion, status: VersionStatus, instances: Sequence[Instance], *, details: bool = False
) -> dict[str, Any]:
    """Return the members of a version; with `details` its instances, too."""
    running = [each for each in instances if each.state not in _ENDED]
    members = {
        **shown(version, "createdAt"),
        "id": version.function_id,
        "versionId": version.id,
        "apiBodyFormat": version.api_body_format or "CUSTOM",
        "status": status.value,
        "instances": len(running),
    }
    members.pop("hasSecrets", None)
    failed = [each.reason for each in instances if each.reason]
    if failed:
        members["statusReason"] = failed[-1]
    if version.rate_limit is not None:
        members["rateLimit"] = rate_limit_shown(version.rate_limit)
    if details:
        members["activeInstances"] = [_active(version, each) for each in running]
    return members


def rate_limit_shown(policy: RateLimit) -> dict[str, Any]:
    """Return the members of a version's rate limit, with the names of creation, too."""
    members = policy.to_dict()
    if policy.rate is not None:
        members["rateLimit"] = policy.rate
    return {**members, "exemptedNcaIds": members["excludedNcaIds"]}


def specification_members(deployment: Deployment, place: int) -> dict[str, Any]:
    """Return the members of a specification with its id."""
    specification = deployment.specifications[place]
    return {**specification.to_dict(), "gpuSpecificationId": gpu_specification_id(deployment, place)}


def deployment_shown(deployment: Deployment) -> dict[str, Any]:
    """Return the members of a deployment."""
    places = range(len(deployment.specifications))
    return {
        **shown(deployment, "createdAt"),
        "deploymentId": deployment_id(deployment),
        "lastUpdatedAt": timestamp(deployment.last_updated_at or deployment.created_at),
        "deploymentSpecifications": [specification_members(deployment, place) for place in places],
        "maxExecutionSeconds": execution_seconds(deployment),
    }


def instance_shown(instance: Instance, deployment: Deployment | None) -> dict[str, Any]:
    """Return the members of an instance, with the public id of its specification if there still is one."""
    members = shown(instance, *INSTANCE_TIMES)
    ids = {} if deployment is None else gpu_specification_ids(deployment)
    if (public := ids.get(instance.specification_id or "")) is not None:
        members["gpuSpecificationId"] = public
    return members


def health_info(
    deployment: Deployment, instances: Sequence[Instance], cluster: Callable[[str], Cluster | None]
) -> list[dict[str, Any]]:
    """Return why instances of a deployment failed, the newest first."""
    specifications = specifications_of(deployment)
    failed = [each for each in instances if each.state is InstanceState.FAILED and each.reason]
    newest = sorted(failed, key=lambda each: -each.updated_at)[:MAX_FAILURES]
    return [_failure(each, specifications.get(each.specification_id or ""), cluster) for each in newest]


def _failure(
    instance: Instance,
    specification: DeploymentSpecification | None,
    cluster: Callable[[str], Cluster | None],
) -> dict[str, Any]:
    where = cluster(instance.cluster_id)
    members = {
        "icmsRequestId": instance.id,
        "gpu": instance.gpu,
        "backend": where.group_name if where else instance.cluster_id,
        "instanceType": specification and specification.instance_type,
        "error": instance.reason,
    }
    return {name: value for name, value in members.items() if value is not None}


def _active(version: FunctionVersion, instance: Instance) -> dict[str, Any]:
    members = {
        "instanceId": instance.id,
        "functionId": instance.function_id,
        "functionVersionId": instance.version_id,
        "ncaId": version.nca_id,
        "instanceStatus": "ACTIVE",
        "status": instance.state.value,
        "location": instance.cluster_id,
        "instanceCreatedAt": timestamp(instance.created_at),
        "instanceUpdatedAt": timestamp(instance.updated_at),
    }
    return members if instance.gpu is None else {**members, "gpu": instance.gpu}
