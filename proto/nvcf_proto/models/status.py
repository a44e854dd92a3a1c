"""The status of a version, from its deployment and its instances. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from nvcf_proto.models.deployments import Deployment, Instance, InstanceState
from nvcf_proto.models.functions import VersionStatus

_STARTING = (InstanceState.PENDING, InstanceState.STARTING)


def version_status(deployment: Deployment | None, instances: Iterable[Instance]) -> VersionStatus:
    """Return the status of a version as the management API shows it.

    ACTIVE has at least as many ready instances as the deployment wants. Below that it is DEPLOYING as long as
    instances start for the first time, DEGRADING while some serve, and DEGRADED when all that served are
    gone. ERROR: all have failed, and none starts. A deployment that wants none is active without one.
    """
    if deployment is None:
        return VersionStatus.INACTIVE
    least = sum(spec.min_instances for spec in deployment.specifications)
    # Neither those that ended in order nor those of an earlier deployment say anything about the next ones.
    known = [
        each
        for each in instances
        if each.state is InstanceState.RUNNING
        or (each.state is not InstanceState.COMPLETED and each.created_at >= deployment.created_at)
    ]
    leaving = [each for each in known if _leaves(each)]
    staying = [each for each in known if not _leaves(each)]
    ready = [each for each in staying if each.state is InstanceState.RUNNING]
    failed = [each for each in staying if each.state is InstanceState.FAILED]
    starting = [each for each in staying if each.state in _STARTING]
    if len(ready) >= max(1, least):
        return VersionStatus.ACTIVE
    hurt = bool(failed) or any(_has_served(each) for each in starting)
    if ready:
        return VersionStatus.DEPLOYING if starting and not hurt else VersionStatus.DEGRADING
    if failed and not starting:
        return VersionStatus.ERROR
    if not least:
        # Started by a request, or not needed at all.
        return VersionStatus.DEPLOYING if starting else VersionStatus.ACTIVE
    if leaving:
        return VersionStatus.DEGRADING
    return VersionStatus.DEGRADED if any(map(_has_served, staying)) else VersionStatus.DEPLOYING


def _leaves(instance: Instance) -> bool:
    """Return whether an instance finishes what it has and takes nothing more."""
    draining = instance.draining_since is not None and instance.state is not InstanceState.FAILED
    return draining or instance.state is InstanceState.TERMINATING


def _has_served(instance: Instance) -> bool:
    return instance.ready_at is not None or instance.restarts > 0
