"""The control loop: look, decide, act; per version, when something happens or the policy asked for it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from nvcf_autoscaler.decision import Decision
from nvcf_autoscaler.errors import InvalidSettings
from nvcf_autoscaler.memory import Memory
from nvcf_autoscaler.observation import Activity, Observation
from nvcf_autoscaler.placement import Cluster, place, room
from nvcf_autoscaler.policy import decide
from nvcf_autoscaler.settings import ScalingSettings
from nvcf_autoscaler.shell import plan
from nvcf_autoscaler.shell.actuation import Actuator
from nvcf_autoscaler.shell.demand import SlotTime, VersionDemand
from nvcf_autoscaler.shell.lease import Lease
from nvcf_autoscaler.shell.mapping import requirement_of, settings_of, specification_ids
from nvcf_autoscaler.shell.queues import QueueState, read_queue
from nvcf_autoscaler.shell.view import (
    Standing,
    by_cluster,
    recent_startups,
    specification_seen,
    standing,
    unreported,
)
from nvcf_autoscaler.shell.world import World
from nvcf_broker.errors import BrokerError, RevisionConflictError
from nvcf_broker.requests import BrokerRequests
from nvcf_proto.models import Deployment, FunctionVersion, Instance, InstanceState

_log = logging.getLogger(__name__)

LONGEST_BETWEEN_LOOKS = 5.0
SHORTEST_BETWEEN_LOOKS = 0.2
AFTER_FAILURE = 1.0
UNDEPLOYED_PATIENCE = 30.0
ENDED_RECORD_LIFE = 600.0
_ENDED = frozenset((InstanceState.COMPLETED, InstanceState.FAILED))


@dataclass
class Watched:
    """What is remembered of one version between looks. Times are Unix seconds."""

    demand: VersionDemand = field(default_factory=VersionDemand)
    slots: SlotTime = field(default_factory=SlotTime)
    memory: Memory = field(default_factory=Memory)
    activity: Activity = field(default_factory=Activity)
    next_look: float = 0.0
    looked_at: float = 0.0
    undeployed_since: float | None = None
    told: tuple[tuple[str, int], ...] | None = None
    told_missing: int = 0
    refusal: str = ""


class Control:
    """Looks after all versions while this replica leads."""

    def __init__(
        self,
        world: World,
        requests: BrokerRequests,
        actuator: Actuator,
        lease: Lease,
        regions: tuple[str, ...],
    ) -> None:
        self._world = world
        self._requests = requests
        self._actuator = actuator
        self._lease = lease
        self._regions = regions
        self._watched: dict[str, Watched] = {}
        self._wake = asyncio.Event()

    def watched(self, version_id: str) -> Watched:
        """The memory of one version."""
        return self._watched.setdefault(version_id, Watched())

    def wake(self, version_id: str) -> None:
        """Something happened to a version: look at once."""
        self.watched(version_id).next_look = 0.0
        self._wake.set()

    async def run(self) -> None:
        """Look after versions until cancelled; does nothing while another replica leads."""
        while True:
            self._wake.clear()
            delay = LONGEST_BETWEEN_LOOKS
            if self._lease.held:
                delay = await self._round()
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _round(self) -> float:
        """Look at all versions that are due; seconds until the next one is."""
        for version_id in self._world.version_ids():
            watched = self.watched(version_id)
            now = time.time()
            if now < max(
                watched.next_look, watched.looked_at + SHORTEST_BETWEEN_LOOKS * (watched.next_look > 0)
            ):
                continue
            if not self._lease.held:
                return SHORTEST_BETWEEN_LOOKS
            watched.looked_at = now
            watched.next_look = now + LONGEST_BETWEEN_LOOKS
            try:
                due = await self._look(version_id, watched)
                watched.next_look = min(now + LONGEST_BETWEEN_LOOKS, max(due, now + SHORTEST_BETWEEN_LOOKS))
            except RevisionConflictError:
                watched.next_look = now + SHORTEST_BETWEEN_LOOKS
            except BrokerError as error:
                _log.warning("%s", error, extra={"version_id": version_id})
                watched.next_look = now + AFTER_FAILURE
        self._forget()
        due_at = min((each.next_look for each in self._watched.values()), default=float("inf"))
        return min(LONGEST_BETWEEN_LOOKS, max(0.01, due_at - time.time()))

    def _forget(self) -> None:
        for version_id in self._watched.keys() - self._world.version_ids():
            if time.time() - self._watched[version_id].looked_at > ENDED_RECORD_LIFE:
                del self._watched[version_id]
            else:
                self._watched[version_id].next_look = float("inf")

    async def _look(self, version_id: str, watched: Watched) -> float:
        now = time.time()
        version = self._world.versions.get(version_id)
        deployment = self._world.deployments.get(version_id)
        instances = self._world.instances_of(version_id)
        clusters = self._world.placement_clusters()
        await self._remove_old(now, instances)
        queue = await read_queue(self._requests, self._regions, version_id)
        if version is None or deployment is None:
            await self._end(now, version, version_id, watched, queue, instances, clusters)
            return now + SHORTEST_BETWEEN_LOOKS * 5
        watched.undeployed_since = None
        stands = standing(now, instances, specification_ids(deployment), clusters)
        for action in plan.housekeeping(now, stands):
            await self._actuator.do(version, deployment, action)
        try:
            settings = settings_of(deployment)
        except InvalidSettings as error:
            _log.error("deployment cannot be scaled: %s", error, extra={"version_id": version_id})
            return now + LONGEST_BETWEEN_LOOKS
        decision = self._decide(now, watched, settings, deployment, queue, stands, clusters)
        await self._apply(now, version, deployment, watched, decision, stands, clusters)
        return decision.recheck_at

    def _decide(
        self,
        now: float,
        watched: Watched,
        settings: ScalingSettings,
        deployment: Deployment,
        queue: QueueState,
        stands: Standing,
        clusters: tuple[Cluster, ...],
    ) -> Decision:
        specifications = []
        running_slots = 0
        for index, spec in enumerate(deployment.specifications):
            own = stands.current[spec.id(index)]
            available = room(
                now,
                requirement_of(spec),
                clusters,
                by_cluster(stands.up),
                unreported(self._world.instances.values(), spec.gpu, spec.instance_type, clusters),
            )
            seen = specification_seen(spec.id(index), own, available)
            running_slots += seen.running * spec.max_request_concurrency
            specifications.append(seen)
        watched.demand.at_least(queue.stored)
        watched.slots.sample(now, queue.in_flight, running_slots)
        watched.activity = watched.activity.seen(now, queue.queued + queue.in_flight > 0)
        arrivals = watched.demand.arrivals
        observation = Observation(
            arrivals=arrivals,
            completions=max(0, arrivals - queue.queued - queue.in_flight),
            busy_seconds=watched.slots.busy_seconds,
            queued=queue.queued,
            in_flight=queue.in_flight,
            specifications=tuple(specifications),
            activity=watched.activity,
            recent_startups=recent_startups(self._world.instances_of(deployment.version_id)),
            demand_seconds=watched.demand.demand_seconds,
            slot_seconds=watched.slots.slot_seconds,
        )
        decision = decide(now, observation, settings, watched.memory)
        watched.memory = decision.memory
        return decision

    async def _apply(
        self,
        now: float,
        version: FunctionVersion,
        deployment: Deployment,
        watched: Watched,
        decision: Decision,
        stands: Standing,
        clusters: tuple[Cluster, ...],
    ) -> None:
        desired = {each.specification_id: each.instances for each in decision.desired}
        await self._announce(version, watched, decision, stands)
        actions: list[plan.Action] = []
        refusal = ""
        for index, spec in enumerate(deployment.specifications):
            specification_id = spec.id(index)
            missing = desired[specification_id] - len(stands.current[specification_id])
            if missing > 0:
                placement = place(
                    now,
                    missing,
                    requirement_of(spec),
                    clusters,
                    by_cluster(stands.up),
                    unreported(self._world.instances.values(), spec.gpu, spec.instance_type, clusters),
                )
                actions += plan.grow(specification_id, placement)
                refusal = placement.reason if placement.unplaced else refusal
        if refusal and refusal != watched.refusal:
            await self._actuator.tell(version, version.id, refusal)
        watched.refusal = refusal
        actions += plan.shrink(stands, desired)
        for action in actions:
            if not self._lease.held:
                return
            await self._actuator.do(version, deployment, action)

    async def _announce(
        self, version: FunctionVersion, watched: Watched, decision: Decision, stands: Standing
    ) -> None:
        counts = tuple((each.specification_id, each.instances) for each in decision.desired)
        if counts == watched.told and decision.missing == watched.told_missing:
            return
        watched.told, watched.told_missing = counts, decision.missing
        _log.info("%s: %s", version.name, decision.reason, extra={"version_id": version.id})
        await self._actuator.tell(
            version,
            version.id,
            decision.reason,
            desired=str(decision.total),
            up=str(len(stands.up)),
            missing=str(decision.missing),
        )

    async def _end(
        self,
        now: float,
        version: FunctionVersion | None,
        version_id: str,
        watched: Watched,
        queue: QueueState,
        instances: list[Instance],
        clusters: tuple[Cluster, ...],
    ) -> None:
        if watched.undeployed_since is None:
            watched.undeployed_since = now
        stands = standing(now, instances, (), clusters)
        actions = plan.housekeeping(now, stands) + plan.undeployed(
            stands,
            queue_empty=version is None or queue.queued + queue.in_flight == 0,
            since=watched.undeployed_since,
            now=now,
            patience=UNDEPLOYED_PATIENCE,
        )
        for action in actions:
            if isinstance(action, plan.Terminate):
                await self._actuator.tell(version, version_id, f"0 instances: {action.reason}", desired="0")
            await self._actuator.end(action)
        watched.told = None

    async def _remove_old(self, now: float, instances: list[Instance]) -> None:
        for instance in instances:
            if instance.state in _ENDED and now - instance.updated_at > ENDED_RECORD_LIFE:
                await self._actuator.remove(instance)
