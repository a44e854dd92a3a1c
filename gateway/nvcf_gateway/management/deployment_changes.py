"""What becomes of a deployment when it is changed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nvcf_gateway.management.bodies import DeploymentCreation
from nvcf_gateway.management.deployment_bodies import AutoscalingPolicy, SpecificationUpdate, check_scaling
from nvcf_gateway.management.shown import specification_members
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.ids import new_id
from nvcf_proto.models import Deployment, DeploymentSpecification, FunctionVersion
from nvcf_proto.models.deployments import deployment_id, gpu_specification_id

# Members that a PUT may leave out: then they stay as they are.
_KEPT = (
    "autoscalingConfiguration",
    "availabilityZones",
    "backend",
    "configuration",
    "cpuArch",
    "driverVersion",
    "gpuMemory",
    "helmValidationPolicy",
    "os",
    "preferredOrder",
    "storage",
    "systemMemory",
)
# A PUT of nothing else changes these specifications and leaves the others alone.
_COUNTS = frozenset(
    ("gpuSpecificationId", "gpu", "instanceType", "minInstances", "maxInstances", "maxRequestConcurrency")
)


def deployment_of(
    version: FunctionVersion, wanted: DeploymentCreation, now: float, before: Deployment | None = None
) -> Deployment:
    """Return the record of a version's deployment; `before` is the one that it replaces."""
    return Deployment(
        version.id,
        version.function_id,
        now if before is None else before.created_at,
        _identified(wanted.specifications, before),
        keep_queued=wanted.keep_queued,
        max_queue_depth=wanted.max_queue_depth,
        max_body_bytes=wanted.max_body_bytes,
        max_execution_seconds=wanted.max_execution_seconds,
        scaling=wanted.scaling,
        deployment_id=new_id() if before is None else deployment_id(before),
        last_updated_at=now,
    )


def _identified(
    specifications: Iterable[DeploymentSpecification], before: Deployment | None
) -> tuple[DeploymentSpecification, ...]:
    """Return the specifications with ids: the old one where what an instance is started with is the same."""
    known = {} if before is None else {gpu_specification_id(before, i): i for i in _places(before)}
    found = []
    for each in specifications:
        place = known.pop(each.specification_id or "", None)
        same = before is not None and place is not None and _kind(before.specifications[place]) == _kind(each)
        found.append(each if same else each.replace(specification_id=new_id()))
    return tuple(found)


def _kind(specification: DeploymentSpecification) -> tuple[str, str, str]:
    return specification.gpu, specification.instance_type, specification.digest


def _places(deployment: Deployment) -> range:
    return range(len(deployment.specifications))


def completed(members: dict[str, Any], before: Deployment) -> dict[str, Any]:
    """Return the members of a PUT with what they leave out. Raises InvalidRecord for an unknown id.

    A specification is that of its id, or else the next one of its kind. One that is named by its id keeps
    all that is left out, one without keeps the members of _KEPT.
    """
    entries = members.get("deploymentSpecifications")
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        return members
    merged, changed = _merged(entries, before)
    if not entries or not all("gpuSpecificationId" in each and each.keys() <= _COUNTS for each in entries):
        return {**members, "deploymentSpecifications": merged}
    whole = before.to_dict()
    kept = {name: whole[name] for name in DeploymentCreation.__struct_encode_fields__ if name in whole}
    specifications = [changed.get(place, specification_members(before, place)) for place in _places(before)]
    return {**kept, **members, "deploymentSpecifications": specifications}


def _merged(
    entries: Sequence[dict[str, Any]], before: Deployment
) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """Return the completed entries in their order, and those of old specifications by place."""
    places = {gpu_specification_id(before, place): place for place in _places(before)}
    named = [_named(index, entry, places) for index, entry in enumerate(entries)]
    free = [place for place in _places(before) if place not in named]
    merged: list[dict[str, Any]] = []
    changed: dict[int, dict[str, Any]] = {}
    for entry, place in zip(entries, named, strict=True):
        kept: dict[str, Any] = {}
        if place is not None:
            kept = specification_members(before, place)
        elif (place := _next_alike(entry, free, before)) is not None:
            free.remove(place)
            old = specification_members(before, place)
            kept = {name: old[name] for name in (*_KEPT, "gpuSpecificationId") if name in old}
        if entry.get("clusters"):
            kept = {name: kept[name] for name in kept if name not in ("backend", "availabilityZones")}
        if entry.get("backend") or entry.get("availabilityZones"):
            kept.pop("clusters", None)
        given = {name: each for name, each in entry.items() if name != "gpuSpecificationId"}
        merged.append({**kept, **given})
        if place is not None:
            changed[place] = merged[-1]
    return merged, changed


def _named(index: int, entry: dict[str, Any], places: dict[str, int]) -> int | None:
    """Return the place of the specification that an entry names. Raises InvalidRecord for an unknown id."""
    name = entry.get("gpuSpecificationId")
    if name is None:
        return None
    place = places.pop(name.lower(), None) if isinstance(name, str) else None
    if place is None:
        path = f"deploymentSpecifications[{index}].gpuSpecificationId"
        raise InvalidRecord(path, "the deployment has no such specification, or it is named twice")
    return place


def _next_alike(entry: dict[str, Any], free: list[int], before: Deployment) -> int | None:
    usual = DeploymentSpecification()
    kind = (entry.get("gpu") or usual.gpu, entry.get("instanceType") or usual.instance_type)
    return next((place for place in free if _kind(before.specifications[place])[:2] == kind), None)


def place_of(deployment: Deployment, specification_id: str) -> int | None:
    """Return the place of a specification, None if the deployment has none with that id."""
    ids = [gpu_specification_id(deployment, place) for place in _places(deployment)]
    return ids.index(specification_id) if specification_id in ids else None


def patched(deployment: Deployment, place: int, update: SpecificationUpdate, now: float) -> Deployment:
    """Return the deployment with one specification changed. Raises InvalidRecord."""
    members = specification_members(deployment, place)
    given = {"minInstances": update.min_instances, "maxInstances": update.max_instances}
    members |= {name: value for name, value in given.items() if value is not None}
    if update.autoscaling is not None:
        members["autoscalingConfiguration"] = update.autoscaling.to_dict()
    if update.policy is AutoscalingPolicy.PLATFORM:
        members.pop("autoscalingConfiguration", None)
    changed = DeploymentSpecification.from_dict(members)
    specifications = tuple(
        changed if index == place else each for index, each in enumerate(deployment.specifications)
    )
    check_scaling(specifications, deployment.scaling, path="autoscalingConfiguration")
    return deployment.replace(
        specifications=specifications, deployment_id=deployment_id(deployment), last_updated_at=now
    )
