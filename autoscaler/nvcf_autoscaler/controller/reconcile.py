"""Reconciles one version: reads what exists, asks the policy, and acts on the difference."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass, field

from nvcf_autoscaler.controller import plan
from nvcf_autoscaler.controller.actuation import Actuator
from nvcf_autoscaler.controller.cache import Cache
from nvcf_autoscaler.controller.history import ScalingHistory
from nvcf_autoscaler.controller.lease import Lease
from nvcf_autoscaler.controller.mapping import requirement_of, settings_of
from nvcf_autoscaler.controller.orders import apply_order
from nvcf_autoscaler.controller.queues import QueueState, read_queue
from nvcf_autoscaler.controller.reconcile_context import ReconcileContext
from nvcf_autoscaler.controller.recorder import Counts, Recorder
from nvcf_autoscaler.controller.version_state import VersionState
from nvcf_autoscaler.errors import InvalidSettings
from nvcf_autoscaler.placement.failures import assess_failures
from nvcf_autoscaler.placement.fair_shares import FairShares, claims_of, possible_clusters
from nvcf_autoscaler.placement.fairness import TIME_SLICE
from nvcf_autoscaler.placement.place import Placement, place
from nvcf_autoscaler.placement.usage import OVER, Usages, usage_of
from nvcf_autoscaler.placement.view import by_cluster, group_instances, measured_startups, startups
from nvcf_autoscaler.policy.decide import Decision, decide
from nvcf_autoscaler.policy.settings import ScalingSettings
from nvcf_broker.requests import ReplyInbox
from nvcf_proto.models import Deployment, FunctionVersion, Instance
from nvcf_proto.models.deployments import specifications_of

_log = logging.getLogger(__name__)

# How often the records are looked at while a report is overdue soon.
FOLLOW_UP_INTERVAL = 1.0
UNDEPLOYED_PATIENCE = 30.0
UNDEPLOYED_RECONCILE_INTERVAL = 1.0
# A time slice lasts at least this many requests, so that long requests are not cut off repeatedly.
TIME_SLICE_SERVICES = 10.0
ENDED_RECORD_LIFE = 600.0
# Seconds and counts change at each reconcile. A text is reported again only if it differs otherwise.
_NUMBERS = re.compile(r"\d+")


@dataclass
class Reconciler:
    """Reconciles versions.

    Queues are read concurrently. Deciding and acting is for one version at a time, so that no two versions
    take the same room.
    """

    cache: Cache
    requests: ReplyInbox
    actuator: Actuator
    lease: Lease
    regions: tuple[str, ...]
    recorder: Recorder
    history: ScalingHistory
    time_slice: float = TIME_SLICE
    acting: asyncio.Lock = field(default_factory=asyncio.Lock)
    _fair_shares: FairShares = field(default_factory=FairShares)

    async def reconcile(self, version_id: str, state: VersionState) -> float:
        """Reconcile a version and return when it is due again (Unix seconds). Raises BrokerError."""
        began = time.time()
        queue = await read_queue(self.requests, self.regions, version_id, state.queue_ages)
        async with self.acting:
            if not self.lease.held:
                return time.time()
            now = time.time()
            await self._remove_ended(now, self.cache.instances_of(version_id))
            version = self.cache.versions.get(version_id)
            deployment = self.cache.deployments.get(version_id)
            if version is None or deployment is None:
                return await self._reconcile_undeployed(now, version, version_id, state, queue)
            state.undeployed_since = None
            try:
                settings = settings_of(deployment)
            except InvalidSettings as error:
                await self._report_problem(version, state, f"the deployment cannot be scaled: {error}")
                return float("inf")
            due = await self._scale(self._context(now, version, deployment, state, settings, queue))
            self.recorder.reconciled(began)
            return due

    def _context(
        self,
        now: float,
        version: FunctionVersion,
        deployment: Deployment,
        state: VersionState,
        settings: ScalingSettings,
        queue: QueueState,
    ) -> ReconcileContext:
        specifications = specifications_of(deployment)
        requirements = {key: requirement_of(spec, version.nca_id) for key, spec in specifications.items()}
        clusters = self.cache.placement_clusters()
        instances = self.cache.instances_of(version.id)
        state.startups = startups(state.startups, instances)
        # Failures of an earlier deployment of the version do not count.
        failures = assess_failures(
            now,
            (each for each in instances if each.created_at >= deployment.created_at),
            deployment.changed_at,
        )
        return ReconcileContext(
            now=now,
            version=version,
            deployment=deployment,
            state=state,
            settings=settings,
            specifications=specifications,
            requirements=requirements,
            queue=queue,
            clusters=clusters,
            groups=group_instances(
                now,
                instances,
                requirements,
                clusters,
                self.lease.held_for,
                self.cache.clusters.is_deleted,
            ),
            failures=failures,
            avoided=frozenset(failures.avoided),
            fair_shares=self._fair_shares.of(now, version.id, self.cache.devices()),
        )

    async def _scale(self, context: ReconcileContext) -> float:
        for action in plan.housekeeping(context.now, context.groups, context.clusters, self.lease.held_for):
            await self.actuator.apply(context.version, action)
        state, settings = context.state, context.settings
        observation = context.observe(self._usages(context))
        instances = self.cache.instances_of(context.version.id)
        measured = measured_startups(instances)
        self.history.add(context.sample(observation, instances), context.history_block(), measured)
        decision = decide(context.now, observation, settings, state.policy_state)
        state.policy_state = decision.state
        order = self.cache.orders.get(context.version.id)
        decision = apply_order(context.now, decision, order, settings, observation.specifications)
        self.recorder.observed(
            context.version,
            state,
            context.queue,
            self._labelled(instances),
            context.running_slots,
            _counts(decision),
        )
        self._claim(context, decision)
        unplaced = await self._announce_and_act(context, decision)
        if context.groups.up:
            # Requests that met no instance wait for these, or have been served.
            state.cold_start_handled()
        state.lacking = max(unplaced, decision.missing)
        due = [decision.requeue_at, *(until for until, _ in context.failures.avoided.values())]
        if context.failures.retry_at:
            due.append(context.failures.retry_at)
        groups = context.groups
        if any(plan.is_waiting(each) for each in (*groups.up, *groups.stale, *groups.ending)):
            due.append(context.now + FOLLOW_UP_INTERVAL)
        return min(due)

    def _labelled(self, instances: list[Instance]) -> list[Instance]:
        """Return instances with the names of their clusters, which metrics show, in place of the ids."""
        return [each.replace(cluster_id=self.cache.cluster_label(each.cluster_id)) for each in instances]

    def _usages(self, context: ReconcileContext) -> Usages:
        return usage_of(context.now, self.cache.all_instances(), context.clusters)

    def _claim(self, context: ReconcileContext, decision: Decision) -> None:
        """Record what this version wants, for the fair shares of all versions."""
        if context.failures.retry_at:
            # Instances that fail to start must not displace running ones.
            self._fair_shares.record(context.now, context.version.id, {}, {})
            return
        clusters = {
            key: possible_clusters(context.now, requirement, context.clusters, context.avoided)
            for key, requirement in context.requirements.items()
        }
        service = context.state.policy_state.rates.service_time(context.queue.in_flight, 0.0)
        claims = claims_of(
            context.version.id,
            context.specifications,
            context.settings,
            context.groups,
            decision,
            clusters,
            max(self.time_slice, TIME_SLICE_SERVICES * service),
        )
        gpus = {key: spec.gpu for key, spec in context.specifications.items()}
        self._fair_shares.record(context.now, context.version.id, gpus, claims)

    async def _announce_and_act(self, context: ReconcileContext, decision: Decision) -> int:
        """Announce a new decision, and act. Return how many instances found no room."""
        counts = _counts(decision)
        state = context.state
        if state.announced == (counts, decision.missing):
            return await self._act(context, decision)
        span = self.recorder.decision_span(context.version, state, decision, counts, len(context.groups.up))
        state.announced = (counts, decision.missing)
        with span:
            await self._announce(context, decision)
            return await self._act(context, decision)

    async def _announce(self, context: ReconcileContext, decision: Decision) -> None:
        version = context.version
        _log.info("%s: %s", version.name, decision.reason, extra={"version_id": version.id})
        await self.actuator.emit_event(
            version,
            version.id,
            decision.reason,
            desired=str(decision.total),
            up=str(len(context.groups.up)),
            kinds=context.kinds(decision),
            missing=str(decision.missing),
            queued=str(context.queue.queued),
            inFlight=str(context.queue.in_flight),
        )

    async def _act(self, context: ReconcileContext, decision: Decision) -> int:
        unplaced = await self._grow(context, decision)
        desired = {each.specification_id: each.instances for each in decision.desired}
        current = context.groups.current
        started = sum(max(0, count - len(current[key])) for key, count in desired.items()) - unplaced
        actions = plan.shrink(context.groups, desired, max(unplaced, decision.missing), started)
        if not actions:
            shares = self._fair_shares.of(context.now, context.version.id, self.cache.devices())
            for key, share in shares.items():
                actions += plan.reclaim(context.now, context.holding(key), share, context.clusters)
        for action in actions:
            if not self.lease.held:
                break
            await self.actuator.apply(context.version, action)
        return unplaced

    async def _grow(self, context: ReconcileContext, decision: Decision) -> int:
        """Create missing instances. Return how many found no room."""
        unplaced = 0
        refusal = self._lack_of_room(context, decision)
        state = context.state
        for desired in decision.desired:
            key = desired.specification_id
            missing = desired.instances - len(context.groups.current[key])
            if missing <= 0:
                continue
            if context.failures.retry_at:
                await self._report_problem(context.version, state, context.failures.text)
                return 0
            existing = by_cluster(context.groups.up)
            clusters = context.clusters_for(key, self._usages(context))
            placement = place(context.now, missing, context.requirements[key], clusters, existing)
            unplaced += placement.unplaced
            if placement.unplaced:
                refusal = self._refusal(context, placement)
            for action in plan.grow(key, context.specifications[key], placement, context.clusters):
                if not self.lease.held:
                    return unplaced
                ordered = self.recorder.waiting_for_order(state)
                await self.actuator.create(context.version, action, decision.reason, ordered)
        state.last_problem = ""
        kind = _NUMBERS.sub("", refusal)
        if refusal and kind != state.last_refusal:
            await self.actuator.emit_event(context.version, context.version.id, refusal)
        state.last_refusal = kind
        return unplaced

    def _lack_of_room(self, context: ReconcileContext, decision: Decision) -> str:
        """Return why no cluster has room for what is missing. Empty if nothing is, or some has room now."""
        if not decision.missing:
            return ""
        texts: dict[str, None] = {}
        existing, usages = by_cluster(context.groups.up), self._usages(context)
        for key, requirement in context.requirements.items():
            clusters = context.clusters_for(key, usages)
            placement = place(context.now, decision.missing, requirement, clusters, existing)
            if placement.assigned:
                return ""
            texts[self._refusal(context, placement)] = None
        return "; ".join(texts)

    def _refusal(self, context: ReconcileContext, placement: Placement) -> str:
        label = self.cache.cluster_label
        avoided = [f"{label(key)}: {why}" for key, (_, why) in context.failures.avoided.items()]
        return "; ".join((placement.reason, *avoided))

    async def _report_problem(self, version: FunctionVersion, state: VersionState, text: str) -> None:
        """Report once what keeps a version from being scaled."""
        kind = _NUMBERS.sub("", text)
        if kind != state.last_problem:
            state.last_problem = kind
            _log.error("%s: %s", version.name, text, extra={"version_id": version.id})
            await self.actuator.emit_event(version, version.id, text)

    async def _reconcile_undeployed(
        self,
        now: float,
        version: FunctionVersion | None,
        version_id: str,
        state: VersionState,
        queue: QueueState,
    ) -> float:
        instances = self.cache.instances_of(version_id)
        self._fair_shares.drop(version_id)
        if state.undeployed_since is None:
            state.undeployed_since = now
        clusters = self.cache.placement_clusters()
        deleted = self.cache.clusters.is_deleted
        groups = group_instances(now, instances, {}, clusters, self.lease.held_for, deleted)
        actions = plan.housekeeping(now, groups, clusters) + plan.undeploy(
            groups,
            queue_empty=version is None or queue.queued + queue.in_flight == 0,
            since=state.undeployed_since,
            now=now,
            patience=UNDEPLOYED_PATIENCE,
        )
        for action in actions:
            if isinstance(action, plan.Terminate):
                text = f"0 instances: {action.reason}"
                await self.actuator.emit_event(version, version_id, text, desired="0")
            await self.actuator.apply(version, action)
        state.announced = None
        if version is not None:
            self.recorder.observed(version, state, queue, self._labelled(instances), 0, ())
        if all(each.state in OVER for each in instances):
            self.recorder.gone(version_id)
            self.history.forget(version_id)
            return float("inf")
        return now + UNDEPLOYED_RECONCILE_INTERVAL

    async def _remove_ended(self, now: float, instances: list[Instance]) -> None:
        for instance in instances:
            if instance.state in OVER and now - instance.updated_at > ENDED_RECORD_LIFE:
                await self.actuator.remove(instance)


def _counts(decision: Decision) -> Counts:
    return tuple((each.specification_id, each.instances) for each in decision.desired)
