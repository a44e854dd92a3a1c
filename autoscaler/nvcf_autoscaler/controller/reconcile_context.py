"""Everything about one version at one instant: what a look works with."""

from __future__ import annotations

from dataclasses import dataclass

from nvcf_autoscaler.controller.queues import QueueState
from nvcf_autoscaler.controller.version_state import Watched
from nvcf_autoscaler.placement.failures import Failures
from nvcf_autoscaler.placement.place import Cluster, Requirement
from nvcf_autoscaler.placement.view import Standing
from nvcf_autoscaler.policy.decide import Decision
from nvcf_autoscaler.policy.settings import ScalingSettings
from nvcf_proto.models import Deployment, DeploymentSpecification, FunctionVersion, Instance


@dataclass(frozen=True)
class Case:
    """A deployed version at one instant."""

    now: float
    version: FunctionVersion
    deployment: Deployment
    watched: Watched
    settings: ScalingSettings
    specifications: dict[str, DeploymentSpecification]
    requirements: dict[str, Requirement]
    queue: QueueState
    clusters: tuple[Cluster, ...]
    stands: Standing
    failures: Failures
    rations: dict[str, dict[str, int]]

    def holding(self, specification_id: str) -> list[Instance]:
        """Instances that take devices as this specification does, earlier forms included."""
        gpu = self.specifications[specification_id].gpu
        return [*self.stands.current[specification_id], *(one for one in self.stands.stale if one.gpu == gpu)]

    def kinds(self, decision: Decision) -> str:
        """Instances of each GPU specification, `2 H100, 1 L40S`."""
        return ", ".join(
            f"{each.instances} {self.specifications[each.specification_id].gpu}" for each in decision.desired
        )
