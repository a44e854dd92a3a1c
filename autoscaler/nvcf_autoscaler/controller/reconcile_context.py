"""Everything that reconciling works with: one deployed version at one instant."""

from __future__ import annotations

from dataclasses import dataclass

from nvcf_autoscaler.controller.history import Sample
from nvcf_autoscaler.controller.queues import QueueState
from nvcf_autoscaler.controller.version_state import VersionState
from nvcf_autoscaler.placement.failures import Failures
from nvcf_autoscaler.placement.place import Cluster, Requirement, room
from nvcf_autoscaler.placement.usage import OVER, Usages
from nvcf_autoscaler.placement.view import (
    InstanceGroups,
    by_cluster,
    clusters_for,
    devices_of,
    specification_seen,
)
from nvcf_autoscaler.policy.decide import Decision
from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.settings import ScalingSettings
from nvcf_proto.models import Deployment, DeploymentSpecification, FunctionVersion, Instance
from nvcf_proto.scaling_history import HistoryBlock


@dataclass(frozen=True)
class ReconcileContext:
    """A deployed version at one instant. `avoided` are the clusters that get no new instances."""

    now: float
    version: FunctionVersion
    deployment: Deployment
    state: VersionState
    settings: ScalingSettings
    specifications: dict[str, DeploymentSpecification]
    requirements: dict[str, Requirement]
    queue: QueueState
    clusters: tuple[Cluster, ...]
    groups: InstanceGroups
    failures: Failures
    avoided: frozenset[str]
    fair_shares: dict[str, dict[str, int]]

    def holding(self, specification_id: str) -> list[Instance]:
        """Return the instances that take the devices of a specification, of earlier deployments too."""
        gpu = self.specifications[specification_id].gpu
        current = self.groups.current[specification_id]
        return [*current, *(one for one in self.groups.stale if one.gpu == gpu)]

    def kinds(self, decision: Decision) -> str:
        """Return the desired instances by GPU as text, `2 H100, 1 L40S`."""
        return ", ".join(
            f"{each.instances} {self.specifications[each.specification_id].gpu}" for each in decision.desired
        )

    def clusters_for(self, specification_id: str, usages: Usages) -> tuple[Cluster, ...]:
        """Return the clusters with their room for a specification, within this version's fair share."""
        share = self.fair_shares.get(specification_id)
        if share is not None:
            there = by_cluster(self.holding(specification_id))
            share = {cluster: count - there.get(cluster, 0) for cluster, count in share.items()}
        return clusters_for(self.specifications[specification_id], self.clusters, usages, self.avoided, share)

    def observe(self, usages: Usages) -> Observation:
        """Return the policy's observation, and add this sample to the version's counters."""
        existing = by_cluster(self.groups.up)
        specifications = tuple(
            specification_seen(
                key,
                self.groups.current[key],
                room(self.now, self.requirements[key], self.clusters_for(key, usages), existing),
            )
            for key in self.specifications
        )
        queue, state = self.queue, self.state
        state.arrivals.sample(queue.stored)
        state.slots.sample(self.now, queue.in_flight, self.running_slots)
        state.activity = state.activity.seen(self.now, queue.queued + queue.in_flight > 0)
        arrivals = state.arrivals.count
        return Observation(
            arrivals=arrivals,
            completions=max(0, arrivals - queue.queued - queue.in_flight),
            busy_seconds=state.slots.busy_seconds,
            queued=queue.queued,
            in_flight=queue.in_flight,
            specifications=specifications,
            activity=state.activity,
            recent_startups=tuple(state.startups.values()),
            demand_seconds=state.gateways.seconds,
            slot_seconds=state.slots.slot_seconds,
        )

    def sample(self, seen: Observation, instances: list[Instance]) -> Sample:
        """Return what the scaling history keeps of an observation."""
        return Sample(
            self.now,
            seen.arrivals,
            seen.arrivals - seen.queued - seen.in_flight,
            seen.busy_seconds,
            seen.queued,
            sum(each.devices for each in instances if each.state not in OVER),
        )

    def history_block(self) -> HistoryBlock:
        """Return an empty block of the scaling history with the version's settings."""
        preferred = self.settings.specifications[0]
        specification = self.specifications[preferred.id]
        return HistoryBlock(
            version_id=self.version.id,
            function_id=self.version.function_id,
            name=self.version.name,
            nca_id=self.version.nca_id,
            hour=0,
            gpu=specification.gpu,
            gpus=devices_of(specification),
            slots=preferred.max_request_concurrency,
            min_instances=self.settings.min_instances,
            max_instances=self.settings.max_preferred,
            wait_slo=self.settings.wait_slo,
            profile=self.settings.profile,
        )

    @property
    def running_slots(self) -> int:
        """Requests that the running instances can serve at a time."""
        return sum(
            spec.max_request_concurrency * self.groups.running(key)
            for key, spec in self.specifications.items()
        )
