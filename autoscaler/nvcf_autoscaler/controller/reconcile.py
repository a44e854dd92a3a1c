"""One look at one version: what is there, what the policy says, and what is done about it."""

from __future__ import annotations

import asyncio
import logging
import re
import time

from nvcf_autoscaler.controller import plan
from nvcf_autoscaler.controller.actuation import Actuator
from nvcf_autoscaler.controller.cache import World
from nvcf_autoscaler.controller.lease import Lease
from nvcf_autoscaler.controller.mapping import requirement_of, settings_of, specifications_of
from nvcf_autoscaler.controller.orders import carried_out
from nvcf_autoscaler.controller.queues import QueueState, read_queue
from nvcf_autoscaler.controller.reconcile_context import Case
from nvcf_autoscaler.controller.recorder import Counts, Recorder
from nvcf_autoscaler.controller.version_state import Watched
from nvcf_autoscaler.errors import InvalidSettings
from nvcf_autoscaler.placement.failures import lessons
from nvcf_autoscaler.placement.fair_shares import Rations, claims_of, possible_clusters
from nvcf_autoscaler.placement.fairness import TURN
from nvcf_autoscaler.placement.place import Cluster, place, room
from nvcf_autoscaler.placement.view import (
    OVER,
    by_cluster,
    clusters_for,
    devices_of,
    silent,
    specification_seen,
    standing,
    startups,
    unreported,
)
from nvcf_autoscaler.policy.decide import Decision, decide
from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.settings import ScalingSettings
from nvcf_broker.requests import ReplyInbox
from nvcf_proto.compute import SILENT_AFTER_SECONDS
from nvcf_proto.models import Deployment, FunctionVersion, Instance

_log = logging.getLogger(__name__)

# How long a silent cluster's instances count. Shorter than the policy's own LOST_AFTER: queued requests wait.
LOST_AFTER = 30.0
UNDEPLOYED_PATIENCE = 30.0
UNDEPLOYED_LOOKS = 1.0
# A turn at GPUs that are short is so many requests long, at least.
TURN_SERVICES = 10.0
ENDED_RECORD_LIFE = 600.0
# Seconds and counts change with each look; what is told again is what is otherwise new.
_NUMBERS = re.compile(r"\d+")


class Looker:
    """Looks at versions. Queues are read side by side; deciding and acting goes one version at a time, so
    that two do not take the same room.
    """

    def __init__(
        self,
        world: World,
        requests: ReplyInbox,
        actuator: Actuator,
        lease: Lease,
        regions: tuple[str, ...],
        recorder: Recorder,
        lost_after: float = LOST_AFTER,
        turn: float = TURN,
    ) -> None:
        self._recorder = recorder
        self._world = world
        self._requests = requests
        self._actuator = actuator
        self._lease = lease
        self._regions = regions
        self._lost_after = lost_after
        self._silent_after = min(SILENT_AFTER_SECONDS, lost_after)
        self._acting = asyncio.Lock()
        self._rations = Rations()
        self._turn = turn

    async def look(self, version_id: str, watched: Watched) -> float:
        """One look; returns when the next one is due (Unix seconds). Raises BrokerError."""
        began = time.time()
        queue = await read_queue(self._requests, self._regions, version_id, watched.ages)
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
            due = await self._keep(case)
            self._recorder.looked(began)
            return due

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
            rations=self._rations.of(now, version.id, self._world.devices()),
        )

    async def _keep(self, case: Case) -> float:
        for action in plan.housekeeping(case.now, case.stands):
            await self._actuator.do(case.version, case.deployment, action)
        observation = self._observe(case)
        decision = decide(case.now, observation, case.settings, case.watched.memory)
        case.watched.memory = decision.memory
        order = self._world.orders.get(case.version.id)
        decision = carried_out(case.now, decision, order, case.settings, observation.specifications)
        self._record(case, observation, decision)
        self._claim(case, decision)
        unplaced = await self._carry_out(case, decision)
        if case.stands.up:
            # Whoever met none waits for these, or has been served.
            case.watched.answered()
        case.watched.short = bool(unplaced or decision.missing)
        due = decision.recheck_at
        if case.failures.retry_at:
            due = min(due, case.failures.retry_at)
        for until, _ in case.failures.avoided.values():
            due = min(due, until)
        return due

    def _record(self, case: Case, observation: Observation, decision: Decision) -> None:
        specifications = case.specifications
        self._recorder.saw(
            case.version,
            case.watched,
            case.queue,
            self._world.instances_of(case.version.id),
            {key: devices_of(spec) for key, spec in specifications.items()},
            sum(
                seen.running * specifications[seen.id].max_request_concurrency
                for seen in observation.specifications
            ),
            _counts(decision),
        )

    def _room_for(self, case: Case, specification_id: str) -> tuple[Cluster, ...]:
        taken = unreported(self._world.instances.values(), case.clusters, self._world.pending_devices())
        avoided = case.failures.avoided.keys() | silent(case.now, case.clusters, self._silent_after)
        spec, ration = case.specifications[specification_id], case.rations.get(specification_id)
        if ration is not None:
            there = by_cluster(case.holding(specification_id))
            ration = {cluster: count - there.get(cluster, 0) for cluster, count in ration.items()}
        return clusters_for(spec, case.clusters, taken, avoided, ration)

    def _claim(self, case: Case, decision: Decision) -> None:
        """Tell what this version wants, for the shares of all."""
        left_alone = case.failures.avoided.keys() | silent(case.now, case.clusters, self._silent_after)
        clusters = {
            key: possible_clusters(requirement, case.clusters, left_alone)
            for key, requirement in case.requirements.items()
        }
        # What does not start shall not push out what runs.
        broken = bool(case.failures.retry_at)
        # Long requests are not to be broken off time and again.
        service = case.watched.memory.rates.service_time(case.queue.in_flight, 0.0)
        turn = max(self._turn, TURN_SERVICES * service)
        claims = claims_of(
            case.version.id, case.specifications, case.settings, case.stands, decision, clusters, turn
        )
        gpus = {key: spec.gpu for key, spec in case.specifications.items()}
        self._rations.take(case.now, case.version.id, gpus, {} if broken else claims)

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
                self._recorder.created(case.watched)
        case.watched.trouble = ""
        kind = _NUMBERS.sub("", refusal)
        if refusal and kind != case.watched.refusal:
            await self._actuator.tell(case.version, case.version.id, refusal)
        case.watched.refusal = kind
        return unplaced

    async def _carry_out(self, case: Case, decision: Decision) -> int:
        """Announce a decision that is new, and act; returns how many instances found no room."""
        counts = _counts(decision)
        if case.watched.told == (counts, decision.missing):
            return await self._act(case, decision)
        span = self._recorder.decided(case.version, case.watched, decision, counts, len(case.stands.up))
        case.watched.told = (counts, decision.missing)
        with span:
            await self._announce(case, decision)
            return await self._act(case, decision)

    async def _act(self, case: Case, decision: Decision) -> int:
        unplaced = await self._grow(case, decision)
        desired = {each.specification_id: each.instances for each in decision.desired}
        current = case.stands.current
        started = sum(max(0, count - len(current[key])) for key, count in desired.items()) - unplaced
        actions = plan.shrink(case.stands, desired, max(unplaced, decision.missing), started)
        if not actions:
            rations = self._rations.of(case.now, case.version.id, self._world.devices())
            for key, ration in rations.items():
                actions += plan.give_up(case.holding(key), ration)
        for action in actions:
            if not self._lease.held:
                break
            await self._actuator.do(case.version, case.deployment, action)
        return unplaced

    async def _announce(self, case: Case, decision: Decision) -> None:
        version = case.version
        _log.info("%s: %s", version.name, decision.reason, extra={"version_id": version.id})
        await self._actuator.tell(
            version,
            version.id,
            decision.reason,
            desired=str(decision.total),
            up=str(len(case.stands.up)),
            kinds=case.kinds(decision),
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
        self._rations.drop(version_id)
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
        if version is not None:
            self._recorder.saw(version, watched, queue, instances, {}, 0, ())
        if all(each.state in OVER for each in instances):
            self._recorder.gone(version_id)
            return float("inf")
        return now + UNDEPLOYED_LOOKS

    async def _remove_old(self, now: float, instances: list[Instance]) -> None:
        for instance in instances:
            if instance.state in OVER and now - instance.updated_at > ENDED_RECORD_LIFE:
                await self._actuator.remove(instance)


def _counts(decision: Decision) -> Counts:
    return tuple((each.specification_id, each.instances) for each in decision.desired)
