"""Carries out decisions: writes the instance record first, then sends the order or the message.

If a replica dies between the two, a PENDING (or draining) record remains and the next leader sends it again.
Agents ignore requests they know, so sending twice is harmless.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Protocol

import nats.errors
from nats.aio.client import Client
from opentelemetry import metrics, propagate

from nvcf_autoscaler.controller.cache import Cache
from nvcf_autoscaler.controller.order_sender import LastAttempts, OrderSender, Sent
from nvcf_autoscaler.controller.plan import (
    Action,
    Create,
    GiveUp,
    OrderAgain,
    ResendEnd,
    Terminate,
)
from nvcf_autoscaler.placement.failures import UNACKNOWLEDGED
from nvcf_broker.connection import describe_error
from nvcf_broker.errors import BrokerError, RevisionConflictError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_proto import compute
from nvcf_proto.compute import Event
from nvcf_proto.icms.messages import InstanceOrder, TerminationMessage, instance_id_of
from nvcf_proto.icms.names import Workload, termination_subject
from nvcf_proto.icms.request_ids import new_request_id
from nvcf_proto.models import FunctionVersion, Instance, InstanceState, Task
from nvcf_proto.models.tasks import SPECIFICATION_ID

_log = logging.getLogger(__name__)

PUBLISH_TIMEOUT = 3.0
AT_ONCE = 8
NOT_ORDERED = "not-ordered"

_meter = metrics.get_meter("nvcf_autoscaler")
_created = _meter.create_counter("nvcf.autoscaler.instances.created", unit="{instance}")
_ended = _meter.create_counter("nvcf.autoscaler.instances.ended", unit="{instance}")
_lost = _meter.create_counter("nvcf.autoscaler.instances.lost", unit="{instance}")


class Owner(Protocol):
    """Whose an instance is: a function version, or a task."""

    @property
    def name(self) -> str:
        """Name for people."""

    @property
    def nca_id(self) -> str:
        """Account that owns it."""


class Actuator:
    """Carries out actions of one version, or one task. All methods raise BrokerError."""

    def __init__(self, client: Client, requests: Requester, cache: Cache, orders: OrderSender) -> None:
        self._client = client
        self._jetstream = JetStream(requests, PUBLISH_TIMEOUT)
        self._cache = cache
        self._orders = orders
        self._ends = LastAttempts()

    async def create(
        self, version: FunctionVersion, action: Create, reason: str = "", on_sent: Sent | None = None
    ) -> None:
        """Create instances. `reason` is for people, `on_sent` is called when a message is published."""
        await _some_at_once(self._create_one(version, action, reason, on_sent) for _ in range(action.count))

    async def apply(self, version: Owner | None, action: Action) -> None:
        """Carry out an action on existing instances."""
        match action:
            case OrderAgain():
                self._order(action.instance, action.attempt)
            case Terminate():
                await _some_at_once(
                    self._terminate(version, each, action.reason) for each in action.instances
                )
            case ResendEnd():
                await self._send_end(version, action.instance, action.attempt)
            case GiveUp():
                await self._give_up(version, action)
            case _:
                pass

    async def _create_one(
        self, version: FunctionVersion, action: Create, reason: str, on_sent: Sent | None
    ) -> None:
        now = time.time()
        request_id = new_request_id(version.id, action.specification_id)
        instance = Instance(
            id=instance_id_of(request_id),
            function_id=version.function_id,
            version_id=version.id,
            cluster_id=action.cluster_id,
            state=InstanceState.PENDING,
            updated_at=now,
            created_at=now,
            specification_id=action.specification_id,
            gpu=action.gpu,
            request_id=request_id,
            devices=action.devices,
        )
        await self._cache.instances.create(instance.key, instance)
        _created.add(1)
        self._order(instance, reason=reason, on_sent=on_sent)

    async def create_for_task(self, task: Task, devices: int) -> None:
        """Create the instance of a launched task."""
        now = time.time()
        instance = Instance(
            id=instance_id_of(task.request_id, workload=Workload.TASK),
            function_id=task.id,
            version_id=task.id,
            cluster_id=task.cluster_id or "",
            state=InstanceState.PENDING,
            updated_at=now,
            created_at=now,
            specification_id=SPECIFICATION_ID,
            gpu=task.specification.gpu,
            request_id=task.request_id,
            devices=devices,
            is_task=True,
        )
        await self._cache.instances.create(instance.key, instance)
        self._order(instance)

    def _order(
        self, instance: Instance, attempt: int = 0, reason: str = "", on_sent: Sent | None = None
    ) -> None:
        times = self._cache.timings(instance.cluster_id)
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        order = InstanceOrder(
            request_id=instance.request_id,
            function_version_id=instance.version_id,
            cluster_id=instance.cluster_id,
            gpu_specification_id=instance.specification_id or "",
            expires_at=instance.created_at + times.order_expires,
            issued_at=time.time(),
            attempt=attempt,
            reason=reason or None,
            trace_parent=carrier.get("traceparent"),
            task_id=instance.version_id if instance.is_task else None,
        )
        self._orders.send(order, on_sent)

    async def _terminate(self, version: Owner | None, instance: Instance, reason: str) -> None:
        now = time.time()
        entry = self._cache.instances.entry(instance.key)
        if entry is None:
            return
        changed = entry.value.changed(now, draining_since=now, reason=reason)
        try:
            await self._cache.instances.update(instance.key, changed, entry.revision)
        except RevisionConflictError:
            # The agent's change wins. The next reconcile decides again.
            return
        _ended.add(1)
        await self._send_end(version, changed)

    async def _send_end(self, version: Owner | None, instance: Instance, attempt: int = 0) -> None:
        """Send a termination message, once for each attempt."""
        if not self._ends.begin(instance.key, attempt):
            return
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        message = TerminationMessage(
            request_id=instance.request_id or instance.id,
            nca_id="" if version is None else version.nca_id,
            instance_ids=(instance.id,),
            availability_zone=self._cache.cluster_label(instance.cluster_id),
            trace_parent=carrier.get("traceparent"),
            reason=instance.reason,
        )
        subject = termination_subject(instance.cluster_id)
        headers = {"Nats-Msg-Id": f"end-{message.request_id}-{attempt}"}
        try:
            await self._jetstream.publish(
                subject, message.to_json(), headers, action=f"cannot publish to {subject}"
            )
        except BrokerError:
            self._ends.failed(instance.key)
            raise

    async def _give_up(self, version: Owner | None, action: GiveUp) -> None:
        instance, category, reason = action.instance, action.category, action.reason
        entry = self._cache.instances.entry(instance.key)
        if entry is None:
            return
        problem = self._orders.problem(instance.request_id)
        if category == UNACKNOWLEDGED and problem is not None:
            category, reason = NOT_ORDERED, problem
        closed = close(entry.value, category, reason, time.time())
        await self._cache.instances.update(instance.key, closed, entry.revision)
        _lost.add(1)
        _log.warning("instance %s given up: %s", instance.id, reason)
        label = self._cache.cluster_label(instance.cluster_id)
        text = f"instance {instance.id} on {label} given up: {reason}"
        await self.emit_event(version, instance.version_id, text, instanceId=instance.id)

    async def remove(self, instance: Instance) -> None:
        """Remove the record of an instance that ended long ago."""
        entry = self._cache.instances.entry(instance.key)
        if entry is not None:
            await self._cache.instances.delete(instance.key, entry.revision)

    async def emit_event(self, version: Owner | None, version_id: str, text: str, **data: str) -> None:
        """Publish a scaling event for users. It is not waited for and may get lost."""
        name = None if version is None else version.name
        event = Event(time.time(), "scaling", version_id, text, function_name=name, data=data)
        try:
            await self._client.publish(compute.event_subject(version_id), event.to_json())
        except (nats.errors.Error, OSError) as error:
            _log.debug("event not published: %s", describe_error(error))


def close(record: Instance, category: str, reason: str, now: float) -> Instance:
    """Return the record of an instance that is given up. Pure.

    What was to end anyway has not failed, and the reason of that stays the first one.
    """
    if record.draining_since is not None:
        first = f"{record.reason}; " if record.reason else ""
        return record.changed(now, state=InstanceState.COMPLETED, reason=f"{first}{reason}")
    return record.changed(now, state=InstanceState.FAILED, category=category, reason=f"{category}: {reason}")


async def _some_at_once(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Await calls, AT_ONCE at a time. Raises the first error when the others of its batch have ended."""
    waiting = list(calls)
    while waiting:
        batch: Sequence[Coroutine[Any, Any, None]] = waiting[:AT_ONCE]
        waiting = waiting[AT_ONCE:]
        for result in await asyncio.gather(*batch, return_exceptions=True):
            if isinstance(result, BaseException):
                for each in waiting:
                    each.close()
                raise result
