"""Records as the management API shows them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvcf_gateway.http.responses import timestamp
from nvcf_proto.models import FunctionVersion, Instance, InstanceState, RateLimit, Record, VersionStatus

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
