"""One look at one version: what is there, what the policy says, and what is done about it."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass

from opentelemetry import metrics, trace

from nvcf_autoscaler.decision import Decision
from nvcf_autoscaler.errors import InvalidSettings
from nvcf_autoscaler.observation import Observation
from nvcf_autoscaler.placement import Cluster, Requirement, place, room
from nvcf_autoscaler.policy import decide
from nvcf_autoscaler.settings import ScalingSettings
from nvcf_autoscaler.shell import plan
from nvcf_autoscaler.shell.actuation import Actuator
from nvcf_autoscaler.shell.failures import Failures, lessons
from nvcf_autoscaler.shell.lease import Lease
from nvcf_autoscaler.shell.mapping import requirement_of, settings_of, specifications_of
from nvcf_autoscaler.shell.orders import carried_out
from nvcf_autoscaler.shell.queues import QueueState, read_queue
from nvcf_autoscaler.shell.view import (
    OVER,
    Standing,
    by_cluster,
    clusters_for,
    silent,
    specification_seen,
    standing,
    startups,
    unreported,
)
from nvcf_autoscaler.shell.watched import Watched
from nvcf_autoscaler.shell.world import World
from nvcf_broker.requests import BrokerRequests
from nvcf_proto.compute import SILENT_AFTER_SECONDS
from nvcf_proto.models import Deployment, DeploymentSpecification, FunctionVersion, Instance

_log = logging.getLogger(__name__)
_tracer = trace.get_tracer("nvcf_autoscaler")
_desired = metrics.get_meter("nvcf_autoscaler").create_gauge(
    "nvcf.autoscaler.instances.desired", unit="{instance}", description="Per function version."
)

# How long a silent cluster's instances count. Shorter than the policy's own LOST_AFTER: queued requests wait.
LOST_AFTER = 30.0
UNDEPLOYED_PATIENCE = 30.0
UNDEPLOYED_LOOKS = 1.0
ENDED_RECORD_LIFE = 600.0
# Seconds and counts change with each look; what is told again is what is otherwise new.
_NUMBERS = re.compile(r"\d+")


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


class Looker:
    """Looks at versions. Queues are read side by side; deciding and acting goes one version at a time, so
    that two do not take the same room.
    """

    def __init__(
        self,
        world: World,
        requests: BrokerRequests,
        actuator: Actuator,
        lease: Lease,
        regions: tuple[str, ...],
        lost_after: float = LOST_AFTER,
    ) -> None:
        self._world = world
        self._requests = requests
        self._actuator = actuator
        self._lease = lease
        self._regions = regions
        self._lost_after = lost_after
        self._silent_after = min(SILENT_AFTER_SECONDS, lost_after)
        self._acting = asyncio.Lock()

    async def look(self, version_id: str, watched: Watched) -> float:
        """One look; returns when the next one is due (Unix seconds). Raises BrokerError."""
        queue = await read_queue(self._requests, self._regions, version_id)
        async with self._acting:
            if not self._lease.held:
                return time.time()
            now = time.time()
            await self._remove_old(now, self._world.instances_of(version_id))
            version = self._world.versions.get(version_id)
            deployment = self._world.deployments.get(version_id)
            if version is None or deployment is None:
                return await self._end(now, version, version_id, watched, queue)
            watched.undeployed_since = None
            try:
                settings = settings_of(deployment)
            except InvalidSettings as error:
                await self._trouble(version, watched, f"the deployment cannot be scaled: {error}")
                return float("inf")
            case = self._case(now, version, deployment, watched, settings, queue)
            return await self._keep(case)

    def _case(
        self,
        now: float,
        version: FunctionVersion,
        deployment: Deployment,
        watched: Watched,
        settings: ScalingSettings,
        queue: QueueState,
    ) -> Case:
        specifications = specifications_of(deployment)
        requirements = {key: requirement_of(spec) for key, spec in specifications.items()}
        clusters = self._world.placement_clusters()
        instances = self._world.instances_of(version.id)
        watched.startups = startups(watched.startups, instances)
        return Case(
            now=now,
            version=version,
            deployment=deployment,
            watched=watched,
            settings=settings,
            specifications=specifications,
            requirements=requirements,
            queue=queue,
            clusters=clusters,
            stands=standing(now, instances, requirements, clusters, self._lost_after),
            # What an earlier deployment of the version met says nothing about this one.
            failures=lessons(now, (each for each in instances if each.created_at >= deployment.created_at)),
        )

    async def _keep(self, case: Case) -> float:
        for action in plan.housekeeping(case.now, case.stands):
            await self._actuator.do(case.version, case.deployment, action)
        observation = self._observe(case)
        decision = decide(case.now, observation, case.settings, case.watched.memory)
        case.watched.memory = decision.memory
        order = self._world.orders.get(case.version.id)
        decision = carried_out(case.now, decision, order, case.settings, observation.specifications)
        unplaced = await self._carry_out(case, decision)
        case.watched.short = bool(unplaced or decision.missing)
        due = decision.recheck_at
        if case.failures.retry_at:
            due = min(due, case.failures.retry_at)
        for until, _ in case.failures.avoided.values():
            due = min(due, until)
        return due

    def _room_for(self, case: Case, specification_id: str) -> tuple[Cluster, ...]:
        taken = unreported(self._world.instances.values(), case.clusters, self._world.pending_devices())
        avoided = case.failures.avoided.keys() | silent(case.now, case.clusters, self._silent_after)
        return clusters_for(case.specifications[specification_id], case.clusters, taken, avoided)

    def _observe(self, case: Case) -> Observation:
        specifications = []
        running_slots = 0
        existing = by_cluster(case.stands.up)
        for key, spec in case.specifications.items():
            available = room(case.now, case.requirements[key], self._room_for(case, key), existing)
            seen = specification_seen(key, case.stands.current[key], available)
            running_slots += seen.running * spec.max_request_concurrency
            specifications.append(seen)
        queue, watched = case.queue, case.watched
        watched.arrivals.sample(queue.stored)
        watched.slots.sample(case.now, queue.in_flight, running_slots)
        watched.activity = watched.activity.seen(case.now, queue.queued + queue.in_flight > 0)
        arrivals = watched.arrivals.count
        return Observation(
            arrivals=arrivals,
            completions=max(0, arrivals - queue.queued - queue.in_flight),
            busy_seconds=watched.slots.busy_seconds,
            queued=queue.queued,
            in_flight=queue.in_flight,
            specifications=tuple(specifications),
            activity=watched.activity,
            recent_startups=tuple(watched.startups.values()),
            demand_seconds=watched.gateways.seconds,
            slot_seconds=watched.slots.slot_seconds,
        )

    async def _grow(self, case: Case, decision: Decision) -> int:
        """Create what is missing; returns how many found no room."""
        unplaced = 0
        refusal = ""
        for desired in decision.desired:
            key = desired.specification_id
            missing = desired.instances - len(case.stands.current[key])
            if missing <= 0:
                continue
            if case.failures.retry_at:
                await self._trouble(case.version, case.watched, case.failures.text)
                return 0
            existing = by_cluster(case.stands.up)
            clusters = self._room_for(case, key)
            placement = place(case.now, missing, case.requirements[key], clusters, existing)
            unplaced += placement.unplaced
            if placement.unplaced:
                left_alone = [f"{name}: {why}" for name, (_, why) in case.failures.avoided.items()]
                refusal = "; ".join((placement.reason, *left_alone))
            for action in plan.grow(key, placement):
                if not self._lease.held:
                    return unplaced
                await self._actuator.do(case.version, case.deployment, action, decision.reason)
        case.watched.trouble = ""
        kind = _NUMBERS.sub("", refusal)
        if refusal and kind != case.watched.refusal:
            await self._actuator.tell(case.version, case.version.id, refusal)
        case.watched.refusal = kind
        return unplaced

    async def _carry_out(self, case: Case, decision: Decision) -> int:
        """Announce a decision that is new, and act; returns how many instances found no room."""
        counts = tuple((each.specification_id, each.instances) for each in decision.desired)
        if case.watched.told == (counts, decision.missing):
            return await self._act(case, decision)
        case.watched.told = (counts, decision.missing)
        attributes: dict[str, str | int] = {
            "nvcf.function.version.id": case.version.id,
            "nvcf.autoscaler.desired": decision.total,
            "nvcf.autoscaler.up": len(case.stands.up),
            "nvcf.autoscaler.reason": decision.reason,
        }
        with _tracer.start_as_current_span("nvcf.autoscaler.decision", attributes=attributes):
            await self._announce(case, decision)
            return await self._act(case, decision)

    async def _act(self, case: Case, decision: Decision) -> int:
        unplaced = await self._grow(case, decision)
        desired = {each.specification_id: each.instances for each in decision.desired}
        for action in plan.shrink(case.stands, desired, unplaced):
            if not self._lease.held:
                break
            await self._actuator.do(case.version, case.deployment, action)
        return unplaced

    async def _announce(self, case: Case, decision: Decision) -> None:
        version = case.version
        _desired.set(decision.total, {"nvcf.function.version.id": version.id})
        _log.info("%s: %s", version.name, decision.reason, extra={"version_id": version.id})
        await self._actuator.tell(
            version,
            version.id,
            decision.reason,
            desired=str(decision.total),
            up=str(len(case.stands.up)),
            missing=str(decision.missing),
            queued=str(case.queue.queued),
            inFlight=str(case.queue.in_flight),
        )

    async def _trouble(self, version: FunctionVersion, watched: Watched, text: str) -> None:
        """Tell what keeps a version from being scaled, once."""
        kind = _NUMBERS.sub("", text)
        if kind != watched.trouble:
            watched.trouble = kind
            _log.error("%s: %s", version.name, text, extra={"version_id": version.id})
            await self._actuator.tell(version, version.id, text)

    async def _end(
        self,
        now: float,
        version: FunctionVersion | None,
        version_id: str,
        watched: Watched,
        queue: QueueState,
    ) -> float:
        instances = self._world.instances_of(version_id)
        if watched.undeployed_since is None:
            watched.undeployed_since = now
        clusters = self._world.placement_clusters()
        stands = standing(now, instances, {}, clusters, self._lost_after)
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
            await self._actuator.end(version, action)
        watched.told = None
        if all(each.state in OVER for each in instances):
            return float("inf")
        return now + UNDEPLOYED_LOOKS

    async def _remove_old(self, now: float, instances: list[Instance]) -> None:
        for instance in instances:
            if instance.state in OVER and now - instance.updated_at > ENDED_RECORD_LIFE:
                await self._actuator.remove(instance)
