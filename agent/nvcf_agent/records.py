"""Writes the instance records of one cluster, with optimistic locking, and events about them."""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import nats.errors
from nats.aio.client import Client

from nvcf_agent.state.managed_instance import ManagedInstance
from nvcf_agent.state.record_changes import Closed, Missing, Write, compare, strays
from nvcf_broker.errors import BrokerError, KeyExistsError, RevisionConflictError
from nvcf_broker.kv import KvMirror
from nvcf_proto.compute import Event, event_subject
from nvcf_proto.models import Instance, InstanceState

_log = logging.getLogger(__name__)


@dataclass
class Published:
    """Result of one round of writing. `complete`: the bucket matches the instances."""

    complete: bool = True
    written: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    closed: dict[str, str] = field(default_factory=dict)


class Records:
    """The instance records of one cluster."""

    def __init__(self, client: Client, mirror: KvMirror[Instance], cluster: str) -> None:
        self._client = client
        self._mirror = mirror
        self._cluster = cluster

    def by_id(self, version_id: str, instance_ids: Iterable[str]) -> dict[str, Instance]:
        """Return the existing records of these instances of a version."""
        found = {each: self._mirror.get(f"{version_id}.{each}") for each in instance_ids}
        return {key: record for key, record in found.items() if record is not None}

    async def publish(
        self,
        instances: Collection[ManagedInstance],
        ended: Collection[str],
        wall: float,
        keep_finished: float,
    ) -> Published:
        """Bring the bucket up to date with these instances, and fix records that belong to none."""
        result = Published()
        try:
            # Serving instances come first, so no reader finds a replaced version without an instance.
            for instance in sorted(instances, key=lambda each: each.is_ending):
                await self._one(instance, result)
            known = {instance.id for instance in instances}
            found = strays(
                self._mirror.values(),
                cluster=self._cluster,
                known=known,
                ended=ended,
                wall=wall,
                keep_finished=keep_finished,
            )
            for stray in found:
                await self._fix(stray.key, stray.record)
        except BrokerError as error:
            _log.warning("cannot report instance states: %s", error)
            result.complete = False
        return result

    async def _one(self, instance: ManagedInstance, result: Published) -> None:
        key = f"{instance.order.version_id}.{instance.id}"
        entry = self._mirror.entry(key)
        match compare(instance, entry.value if entry is not None else None):
            case Write(record):
                try:
                    if entry is None:
                        await self._mirror.create(key, record)
                    else:
                        await self._mirror.update(key, record, entry.revision)
                except (RevisionConflictError, KeyExistsError):
                    # The record has changed meanwhile. The next round decides again.
                    result.complete = False
                    return
                result.written.add(instance.id)
                if entry is None or entry.value.state is not record.state:
                    await self._emit_event(instance, record)
            case Missing():
                result.missing.add(instance.id)
            case Closed(reason):
                result.closed[instance.id] = reason
            case _:
                result.written.add(instance.id)

    async def _fix(self, key: str, record: Instance | None) -> None:
        entry = self._mirror.entry(key)
        if entry is None:
            return
        try:
            if record is None:
                await self._mirror.delete(key, entry.revision)
            else:
                _log.warning("instance %s: %s", record.id, record.reason)
                await self._mirror.update(key, record, entry.revision)
        except RevisionConflictError:
            _log.debug("record %s was changed meanwhile", key)

    async def remove(self, instance: ManagedInstance) -> None:
        """Remove the record of an ended instance. Raises `BrokerError`."""
        key = f"{instance.order.version_id}.{instance.id}"
        entry = self._mirror.entry(key)
        if entry is not None:
            await self._mirror.delete(key, entry.revision)

    async def _emit_event(self, instance: ManagedInstance, record: Instance) -> None:
        """Publish an event for users. It is not waited for and may get lost."""
        reason = (record.reason or "").partition("\n")[0]
        if record.state is InstanceState.RUNNING and record.ready_at and not (reason or record.restarts):
            reason = f"ready after {record.ready_at - record.created_at:.1f} s"
        text = f"instance {record.id} on {self._cluster}: {instance.phase.value}"
        event = Event(
            at=record.updated_at,
            kind="instance",
            version_id=record.version_id,
            function_name=instance.order.function_name,
            text=f"{text} ({reason})" if reason else text,
            data={"instanceId": record.id, "clusterId": self._cluster, "state": record.state.value},
        )
        try:
            await self._client.publish(event_subject(record.version_id), event.to_json())
        except (nats.errors.Error, OSError) as error:
            _log.debug("event not published: %s", error)
