"""Applies agents' reports to instance records, with optimistic locking, and tells of the changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import nats.errors
from nats.aio.client import Client

from nvcf_broker.errors import KeyExistsError, RevisionConflictError
from nvcf_gateway.clusters.instance_reports import (
    OK,
    OVER,
    UNKNOWN_REQUEST,
    Decision,
    acknowledged,
    is_news,
    lacking,
    released_by,
    reported,
    still_refused,
)
from nvcf_gateway.clusters.lost_records import LostRecords, NoRecord
from nvcf_gateway.clusters.requeue import Requeuer
from nvcf_gateway.errors import StoreUnavailable
from nvcf_gateway.registry import Registry
from nvcf_proto.compute import Event, event_subject
from nvcf_proto.icms.reports import Heartbeat, KnownInstance, StatusReport
from nvcf_proto.icms.reports import InstanceState as Reported
from nvcf_proto.models import Instance, InstanceState

_log = logging.getLogger(__name__)

ATTEMPTS = 10
KEEP_ENDED_SECONDS = 300.0
"""How long the record of an ended instance stays readable."""
_EARLIER = "lost: it is of an earlier release, whose agents this gateway does not know"
_STATES = {
    InstanceState.STARTING: Reported.STARTING,
    InstanceState.RUNNING: Reported.RUNNING,
    InstanceState.TERMINATING: Reported.SHUTTING_DOWN,
}


class InstanceRecords:
    """The records of instances, as the agents' calls change them. Any replica may take any call."""

    def __init__(self, registry: Registry, client: Client, requeuer: Requeuer) -> None:
        self._registry = registry
        self._client = client
        self._requeuer = requeuer
        self._lost = LostRecords(registry, time.time)

    async def acknowledge(self, request_id: str, cluster_id: str) -> Decision:
        """Apply the acknowledgement of a request. Raises BrokerError and StoreUnavailable."""
        decision, _ = await self._apply(
            request_id, lambda record: acknowledged(record, cluster_id, time.time())
        )
        return decision

    async def report(
        self, request_id: str, instance_id: str, cluster_id: str, report: StatusReport
    ) -> Decision:
        """Apply the report of an instance. Raises BrokerError and StoreUnavailable."""

        def decide(record: Instance | None) -> Decision:
            return reported(record, cluster_id, instance_id, report, time.time())

        decision, before = await self._apply(request_id, decide)
        if before is None and report.instance_state is not Reported.TERMINATED:
            decision, before = await self._apply_lost(request_id, instance_id, cluster_id, report, decide)
        after = decision.record
        if before is not None and after is not None and is_news(before, after):
            if after.state in OVER:
                await self._requeuer.requeue(after, report.held_requests)
            await self._tell(after, {} if report.details is None else report.details.start_parts)
        return decision

    async def heartbeat(self, cluster_id: str, heartbeat: Heartbeat) -> bool:
        """Note which ended instances hold nothing any more.

        Return whether the cluster has instances without a record. Raises BrokerError.
        """
        records = [each for each in self._registry.instances.values() if each.cluster_id == cluster_id]
        for gpu, usage in heartbeat.gpu_usage.items():
            for record in released_by(records, gpu, usage.allocated, time.time()):
                await self._write(record)
        return any(lacking(records, gpu, usage.allocated) for gpu, usage in heartbeat.gpu_usage.items())

    def known(self, cluster_id: str) -> list[KnownInstance]:
        """Return the instances that a cluster has reported and that have not ended."""
        return [
            KnownInstance(
                instance_id=each.id,
                request_id=each.request_id,
                instance_state=Reported.SHUTTING_DOWN
                if each.draining_since is not None
                else _STATES.get(each.state, Reported.STARTING),
            )
            for each in self._registry.instances.values()
            if each.cluster_id == cluster_id and each.reported_at is not None and each.state not in OVER
        ]

    async def tidy(self, now: float) -> None:
        """Remove records of instances that ended long ago; close those of earlier releases.

        The refusal of a chart stays until its deployment is changed.
        Raises BrokerError.
        """
        for record in self._registry.instances.values():
            if record.state in OVER:
                deployment = self._registry.deployments.get(record.version_id)
                kept = still_refused(record, deployment) or self._is_needed(record)
                if now - record.updated_at > KEEP_ENDED_SECONDS and not kept:
                    await self._remove(record)
            elif not record.request_id:
                closed = record.changed(now, state=InstanceState.FAILED, category="lost", reason=_EARLIER)
                await self._write(closed.replace(released_at=now))

    def _is_needed(self, record: Instance) -> bool:
        """Return whether a task has yet to learn how its instance ended."""
        task = self._registry.tasks.get(record.version_id) if record.is_task else None
        return task is not None and not task.status.is_over and task.request_id == record.request_id

    async def _apply(
        self, request_id: str, decide: Callable[[Instance | None], Decision]
    ) -> tuple[Decision, Instance | None]:
        """Return the decision, and the record as it was before."""
        mirror, index = self._registry.instances, self._registry.index
        for attempt in range(ATTEMPTS):
            key = index.key_of_request(request_id)
            mirrored = key is not None and attempt == 0
            if mirrored and key is not None:
                entry = mirror.entry(key)
            else:
                entry = await mirror.refresh(key or f"*.{request_id}")
            record = None if entry is None else entry.value
            decision = decide(record)
            if decision.record is None or entry is None:
                if mirrored:
                    # Another replica may have written what the mirror does not show yet. A write would fail
                    # then; an answer without one must not be given on old knowledge.
                    continue
                return decision, record
            try:
                await mirror.update(decision.record.key, decision.record, entry.revision)
            except RevisionConflictError:
                continue
            return decision, record
        raise StoreUnavailable("the record is being changed by others, try again")

    async def _apply_lost(
        self,
        request_id: str,
        instance_id: str,
        cluster_id: str,
        report: StatusReport,
        decide: Callable[[Instance | None], Decision],
    ) -> tuple[Decision, Instance | None]:
        """Return the decision about a live instance without a record, which is made anew if it was lost."""
        found = await self._lost.find(request_id, instance_id, cluster_id, report.details)
        if found is NoRecord.CLOSED:
            return decide(None), None
        if found is NoRecord.UNKNOWN:
            _log.warning("cluster %s runs instance %s, of which nothing is known", cluster_id, instance_id)
            return Decision(OK, UNKNOWN_REQUEST), None
        decision = decide(found)
        if decision.record is not None:
            try:
                await self._registry.instances.create(found.key, decision.record)
            except KeyExistsError:
                return await self._apply(request_id, decide)
            _log.warning("the record of instance %s was lost, and is made anew", instance_id)
        return decision, found

    async def _write(self, record: Instance) -> None:
        entry = self._registry.instances.entry(record.key)
        if entry is not None:
            try:
                await self._registry.instances.update(record.key, record, entry.revision)
            except RevisionConflictError:
                _log.debug("record %s was changed meanwhile", record.key)

    async def _remove(self, record: Instance) -> None:
        entry = self._registry.instances.entry(record.key)
        if entry is not None:
            try:
                await self._registry.instances.delete(record.key, entry.revision)
            except RevisionConflictError:
                _log.debug("record %s was changed meanwhile", record.key)

    async def _tell(self, record: Instance, parts: Mapping[str, float]) -> None:
        """Publish an event for users. It is not waited for and may get lost.

        `parts` are the seconds of each part of its start.
        """
        version = self._registry.versions.get(record.version_id)
        cluster = self._registry.registered_clusters.get(record.cluster_id)
        name = record.cluster_id if cluster is None else cluster.name
        reason = (record.reason or "").partition("\n")[0]
        if record.state is InstanceState.RUNNING and record.ready_at and not (reason or record.restarts):
            shown = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items())
            whole = f"ready after {record.ready_at - record.created_at:.1f} s"
            reason = f"{whole}: {shown}" if shown else whole
        text = f"instance {record.id} on {name}: {record.state.value}"
        event = Event(
            at=record.updated_at,
            kind="instance",
            version_id=record.version_id,
            function_name=None if version is None else version.name,
            text=f"{text} ({reason})" if reason else text,
            data={"instanceId": record.id, "clusterId": record.cluster_id, "state": record.state.value},
        )
        try:
            await self._client.publish(event_subject(record.version_id), event.to_json())
        except (nats.errors.Error, OSError) as error:
            _log.debug("event not published: %s", error)
