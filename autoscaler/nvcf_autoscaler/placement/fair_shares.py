"""Fair shares while GPUs are short: the claims of all versions, and what each may have.

Only the leader keeps them. A new leader knows all claims after it has reconciled each version once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nvcf_autoscaler.placement.fairness import Claim, Plan, max_min_shares
from nvcf_autoscaler.placement.place import Cluster, Requirement
from nvcf_autoscaler.placement.view import InstanceGroups, by_cluster, devices_of
from nvcf_autoscaler.policy.decide import Decision
from nvcf_autoscaler.policy.settings import ScalingSettings
from nvcf_proto.models import DeploymentSpecification

# Demand that has just gone still counts for so many seconds, since it may come back.
STILL_NEEDED = 60.0
# Every deployed version is reconciled more often than this.
FORGET_AFTER = 15.0


@dataclass
class _Entry:
    """The last claim of one specification. `short`: it holds fewer instances than it wants."""

    claim: Claim
    gpu: str
    short: bool
    at: float
    peak_at: float


@dataclass
class FairShares:
    """Claims of all versions, by version and specification."""

    _entries: dict[tuple[str, str], _Entry] = field(default_factory=dict)

    def record(
        self, now: float, version_id: str, gpus: Mapping[str, str], claims: Mapping[str, Claim]
    ) -> None:
        """Record the claims of a version, and the GPU kind of each, by specification."""
        self.drop(version_id, but=claims.keys())
        for specification_id, new in claims.items():
            key = (version_id, specification_id)
            before = self._entries.get(key)
            since, needed, peak_at = now, new.needed, now
            if before is not None:
                last = before.claim
                same = bool(last.held) == bool(new.held) and (new.held or last.wanted)
                since = last.since if same else now
                if last.needed > needed and now - before.peak_at < STILL_NEEDED:
                    needed, peak_at = min(last.needed, new.wanted), before.peak_at
            claim = replace(new, since=since, needed=needed)
            short = claim.wanted > claim.held
            self._entries[key] = _Entry(claim, gpus[specification_id], short, now, peak_at)

    def drop(self, version_id: str, but: Iterable[str] = ()) -> None:
        """Drop a version's claims, except those of some specifications."""
        kept = set(but)
        for key in [key for key in self._entries if key[0] == version_id and key[1] not in kept]:
            del self._entries[key]

    def of(
        self, now: float, version_id: str, devices: Mapping[str, Mapping[str, int]]
    ) -> dict[str, dict[str, int]]:
        """Return the most instances by specification and cluster; without an entry, nothing is limited.

        `devices` is the total by kind and cluster.
        """
        found: dict[str, dict[str, int]] = {}
        plans: dict[str, Plan] = {}
        for (owner, specification_id), entry in self._entries.items():
            if owner != version_id:
                continue
            if entry.gpu not in plans:
                plans[entry.gpu] = self._plan(now, entry.gpu, devices.get(entry.gpu, {}))
            plan = plans[entry.gpu]
            if plan:
                found[specification_id] = plan[entry.claim.key]
        return found

    def _plan(self, now: float, gpu: str, devices: Mapping[str, int]) -> Plan:
        """Return the shares; empty while no claim is short, or only one version has claims."""
        live = [each for each in self._entries.values() if each.gpu == gpu and now - each.at < FORGET_AFTER]
        wanting = [each for each in live if each.claim.wanted or each.claim.held]
        if len(wanting) < 2 or not any(each.short for each in wanting):
            return {}
        return max_min_shares(now, (each.claim for each in live), devices)


def claims_of(
    version_id: str,
    specifications: Mapping[str, DeploymentSpecification],
    settings: ScalingSettings,
    groups: InstanceGroups,
    decision: Decision,
    clusters: Mapping[str, Sequence[Cluster]],
    time_slice: float,
) -> dict[str, Claim]:
    """Return what a version wants after a decision, by specification.

    `clusters` are where each may start instances. What runs elsewhere with the deployment's consent, as in a
    cluster that is silent for a moment, cordoned or avoided after failures, may stay.
    """
    desired = {each.specification_id: each.instances for each in decision.desired}
    missing = decision.missing * settings.slots
    needed = decision.needed * settings.slots
    stale = list(groups.stale)
    found: dict[str, Claim] = {}
    for key, spec in specifications.items():
        slots = spec.max_request_concurrency
        wanted = min(spec.max_instances, desired.get(key, 0) + -(-missing // slots))
        least = min(wanted, spec.min_instances)
        serving = max(least, min(wanted, -(-needed // slots)))
        needed = max(0, needed - serving * slots)
        # Instances of an earlier form of the deployment make room for their successors.
        mine = [each for each in stale if each.gpu == spec.gpu]
        stale = [each for each in stale if each.gpu != spec.gpu]
        possible = frozenset(each.id for each in clusters[key])
        staying = {each.cluster_id for each in groups.current[key]}
        staying |= {each.cluster_id for each in mine if each.cluster_id in groups.drained}
        found[key] = Claim(
            key=f"{version_id}/{key}",
            clusters=possible,
            devices=devices_of(spec, clusters[key]),
            least=least,
            needed=serving,
            wanted=wanted,
            since=0.0,
            holding=by_cluster((*groups.current[key], *mine)),
            time_slice=time_slice,
            keeps=frozenset(staying - possible),
        )
    return found


def possible_clusters(
    now: float, requirement: Requirement, clusters: Iterable[Cluster], avoided: Collection[str]
) -> list[Cluster]:
    """Return the clusters that may hold instances of a specification and have its GPU and type."""
    kind = (requirement.gpu, requirement.instance_type)
    return [
        each
        for each in clusters
        if each.unavailable(now) is None
        and each.id not in avoided
        and requirement.permits(each)
        and any((one.gpu, one.instance_type) == kind for one in each.capacity)
    ]
