"""Maps the platform's records to the values of policy and placement. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nvcf_autoscaler.placement.place import LOST_AFTER, Capacity, Requirement
from nvcf_autoscaler.placement.place import Cluster as PlacementCluster
from nvcf_autoscaler.placement.timings import timings_of
from nvcf_autoscaler.placement.view import ahead_by
from nvcf_autoscaler.policy.settings import ScalingDetails, ScalingSettings, SpecificationSettings, Stickiness
from nvcf_proto.compute import Cluster
from nvcf_proto.durations import duration_seconds
from nvcf_proto.models import Deployment, DeploymentSpecification, ScalingPreferences, ScalingRule
from nvcf_proto.models.deployments import specifications_of
from nvcf_proto.models.scaling import AutoscalingConfiguration
from nvcf_proto.models.scaling import ScalingDetails as WantedDetails

# What NVCF's autoscaler does where a configuration leaves one direction out.
PLATFORM_UP = ScalingDetails(1.2, 70)
PLATFORM_DOWN = ScalingDetails(0.8, 30)


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
    wanted = deployment.scaling or ScalingPreferences()
    up, down = _details(wanted.scale_up), _details(wanted.scale_down)
    if up is None and (configuration := _configuration(deployment)) is not None:
        up = _given(configuration.scale_up) or PLATFORM_UP
        down = _given(configuration.scale_down) or PLATFORM_DOWN
    return ScalingSettings(
        specifications,
        wait_slo=5.0 if wanted.wait_slo is None else wanted.wait_slo,
        target_utilisation=wanted.target_utilisation,
        scale_to_zero_delay=wanted.scale_to_zero_delay,
        keep_warm=wanted.keep_warm,
        profile=wanted.profile or "balanced",
        wait_price=wanted.wait_price,
        scale_up=up,
        scale_down=down,
    )


def _details(rule: ScalingRule | None) -> ScalingDetails | None:
    if rule is None:
        return None
    stickiness = None
    if rule.stickiness is not None:
        stickiness = Stickiness(rule.stickiness.size, rule.stickiness.threshold)
    return ScalingDetails(rule.factor, rule.threshold, stickiness, rule.metric)


def _configuration(deployment: Deployment) -> AutoscalingConfiguration | None:
    """Return the first configuration in preferred order: one decision is made for all specifications."""
    given = (spec.autoscaling for spec in specifications_of(deployment).values())
    return next((each for each in given if each is not None and each != AutoscalingConfiguration()), None)


def _given(details: WantedDetails | None) -> ScalingDetails | None:
    if details is None:
        return None
    stickiness = None
    if (window := details.stickiness) is not None:
        stickiness = Stickiness(duration_seconds(window.size), duration_seconds(window.threshold))
    return ScalingDetails(details.factor, details.threshold, stickiness, details.metric)


PROCESS = "process"
"""Backend of the clusters that run processes and no containers."""


def requirement_of(spec: DeploymentSpecification, nca_id: str = "") -> Requirement:
    """Return what a specification of a function of that account requires of a cluster."""
    return Requirement(
        gpu=spec.gpu,
        instance_type=spec.instance_type,
        clusters=spec.places,
        regions=spec.regions,
        groups=() if spec.group is None else (spec.group,),
        attributes=frozenset(f"{key}={value}" for key, value in spec.required_attributes.items()),
        nca_id=nca_id,
    )


def clusters_of(
    records: Iterable[tuple[Cluster, float]], lost_after: float = LOST_AFTER
) -> tuple[PlacementCluster, ...]:
    """Return clusters for placement, with the instants of their last heartbeats on this process' clock.

    `lost_after` is the least silence after which the instances of a cluster are lost.
    """
    return tuple(
        PlacementCluster(
            id=record.id,
            region=record.region,
            heard_at=heard_at,
            capacity=tuple(
                Capacity(
                    pool.gpu,
                    pool.instance_type,
                    pool.instances_free,
                    pool.instances_total,
                    pool.gpus_per_instance,
                    pool.node_gpus,
                    pool.nodes,
                    _attributes(
                        # What people have said of the cluster wins over what its agent has found.
                        {
                            name: value
                            for name, value in pool.attributes.items()
                            if name not in record.attributes
                        }
                    ),
                )
                for pool in record.pools
            ),
            group=record.group_name,
            attributes=_attributes(record.attributes),
            healthy=record.healthy,
            name=record.name,
            heartbeat_at=record.heartbeat_at + ahead_by(heard_at, record.heartbeat_at),
            authorized=frozenset((*record.authorized_nca_ids, record.nca_id)),
            cordoned=record.cordoned,
            draining=record.draining,
            runs_processes=record.backend == PROCESS,
            timings=timings_of(record.heartbeat_seconds, lost_after),
        )
        for record, heard_at in records
    )


def _attributes(members: Mapping[str, str]) -> frozenset[str]:
    return frozenset(f"{key}={value}" for key, value in members.items())
