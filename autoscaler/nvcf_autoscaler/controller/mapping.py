"""Maps the platform's records to the values of policy and placement. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from nvcf_autoscaler.placement.place import Capacity, Requirement
from nvcf_autoscaler.placement.place import Cluster as PlacementCluster
from nvcf_autoscaler.policy.settings import ScalingDetails, ScalingSettings, SpecificationSettings, Stickiness
from nvcf_proto.compute import Cluster
from nvcf_proto.models import Deployment, DeploymentSpecification, ScalingRule
from nvcf_proto.models.deployments import specifications_of


def settings_of(deployment: Deployment) -> ScalingSettings:
    """Return the scaling settings of a deployment. Raises InvalidSettings."""
    specifications = tuple(
        SpecificationSettings(
            id=specification_id,
            min_instances=spec.min_instances,
            max_instances=spec.max_instances,
            max_request_concurrency=spec.max_request_concurrency,
        )
        for specification_id, spec in specifications_of(deployment).items()
    )
    wanted = deployment.scaling
    if wanted is None:
        return ScalingSettings(specifications)
    return ScalingSettings(
        specifications,
        wait_slo=5.0 if wanted.wait_slo is None else wanted.wait_slo,
        target_utilisation=wanted.target_utilisation,
        scale_to_zero_delay=wanted.scale_to_zero_delay,
        keep_warm=wanted.keep_warm,
        scale_up=_details(wanted.scale_up),
        scale_down=_details(wanted.scale_down),
    )


def _details(rule: ScalingRule | None) -> ScalingDetails | None:
    if rule is None:
        return None
    stickiness = None
    if rule.stickiness is not None:
        stickiness = Stickiness(rule.stickiness.size, rule.stickiness.threshold)
    return ScalingDetails(rule.factor, rule.threshold, stickiness, rule.metric)


def requirement_of(spec: DeploymentSpecification) -> Requirement:
    """Return what a specification requires of a cluster."""
    return Requirement(
        gpu=spec.gpu,
        instance_type=spec.instance_type,
        clusters=spec.clusters,
        regions=spec.regions,
        groups=() if spec.cluster_group is None else (spec.cluster_group,),
        attributes=frozenset(f"{key}={value}" for key, value in spec.attributes.items()),
    )


def clusters_of(records: Iterable[tuple[Cluster, float]]) -> tuple[PlacementCluster, ...]:
    """Return clusters for placement, with the instants of their last heartbeats on this process' clock."""
    return tuple(
        PlacementCluster(
            id=record.id,
            region=record.region,
            heard_at=heard_at,
            capacity=tuple(
                Capacity(pool.gpu, pool.instance_type, pool.instances_free) for pool in record.pools
            ),
            group=record.group,
            attributes=frozenset(f"{key}={value}" for key, value in record.attributes.items()),
            healthy=not record.draining,
        )
        for record, heard_at in records
    )
