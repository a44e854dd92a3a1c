"""Carries out decisions: writes the instance record first, then sends the message.

If a replica dies between the two, a PENDING (or draining) record remains and the next leader sends the
message again. Agents ignore messages they know, so sending twice is harmless.
"""

from __future__ import annotations

import asyncio
import logging
import time

import nats.errors
from nats.aio.client import Client
from opentelemetry import metrics, propagate

from nvcf_autoscaler.controller.cache import Cache
from nvcf_autoscaler.controller.plan import Action, Create, GiveUp, Resend, ResendEnd, Terminate
from nvcf_broker.connection import describe_error
from nvcf_broker.errors import RevisionConflictError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_proto import compute
from nvcf_proto.compute import CreationMessage, Event, TerminationMessage
from nvcf_proto.ids import new_id
from nvcf_proto.models import Deployment, FunctionVersion, Instance, InstanceState
from nvcf_proto.models.deployments import execution_seconds, specifications_of

_log = logging.getLogger(__name__)

MESSAGE_LIFE = 60.0
TERMINATION_GRACE = 30.0
PUBLISH_TIMEOUT = 3.0
AT_ONCE = 8
LOST = "lost"

_meter = metrics.get_meter("nvcf_autoscaler")
_created = _meter.create_counter("nvcf.autoscaler.instances.created", unit="{instance}")
_ended = _meter.create_counter("nvcf.autoscaler.instances.ended", unit="{instance}")
_lost = _meter.create_counter("nvcf.autoscaler.instances.lost", unit="{instance}")


class Actuator:
    """Carries out actions of one version. All methods raise BrokerError."""

    def __init__(self, client: Client, requests: Requester, cache: Cache) -> None:
        self._client = client
        self._jetstream = JetStream(requests, PUBLISH_TIMEOUT)
        self._cache = cache

    async def apply(
        self, version: FunctionVersion, deployment: Deployment, action: Action, reason: str = ""
    ) -> None:
        """Carry out one action of a deployed version. `reason` goes into creation messages."""
        match action:
            case Create():
                await self._create(version, deployment, action, reason)
            case Resend():
                await self._send_creation(version, deployment, action.instance, "")
            case _:
                await self.end(version, action)

    async def end(self, version: FunctionVersion | None, action: Action) -> None:
        """Carry out an action that ends instances. Other actions need a deployment and are ignored."""
        match action:
            case Terminate():
                await self._terminate(action)
            case ResendEnd():
                each = action.instance
                await self._send_end((each,), each.reason or "", f"end-{each.id}-{action.attempt}")
            case GiveUp():
                await self._give_up(version, action.instance, action.reason)
            case _:
                pass

    async def _create(
        self, version: FunctionVersion, deployment: Deployment, action: Create, reason: str
    ) -> None:
        for first in range(0, action.count, AT_ONCE):
            results = await asyncio.gather(
                *(
                    self._create_one(version, deployment, action, reason)
                    for _ in range(min(AT_ONCE, action.count - first))
                ),
                return_exceptions=True,
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    async def _create_one(
        self, version: FunctionVersion, deployment: Deployment, action: Create, reason: str
    ) -> None:
        now = time.time()
        instance = Instance(
            id=new_id(),
            function_id=version.function_id,
            version_id=version.id,
            cluster_id=action.cluster_id,
            state=InstanceState.PENDING,
            updated_at=now,
            created_at=now,
            specification_id=action.specification_id,
            gpu=specifications_of(deployment)[action.specification_id].gpu,
        )
        await self._cache.instances.create(instance.key, instance)
        _created.add(1)
        await self._send_creation(version, deployment, instance, reason)

    async def _send_creation(
        self, version: FunctionVersion, deployment: Deployment, instance: Instance, reason: str
    ) -> None:
        spec = specifications_of(deployment).get(instance.specification_id or "")
        if spec is None:
            return
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        message = CreationMessage(
            message_id=f"create-{instance.id}",
            cluster_id=instance.cluster_id,
            function_id=version.function_id,
            version_id=version.id,
            function_name=version.name,
            nca_id=version.nca_id,
            specification_id=instance.specification_id or "",
            gpu=spec.gpu,
            instance_type=spec.instance_type,
            gpus_per_instance=spec.gpus_per_instance,
            max_request_concurrency=spec.max_request_concurrency,
            max_execution_seconds=execution_seconds(deployment),
            instance_ids=(instance.id,),
            issued_at=instance.created_at,
            expires_at=instance.created_at + MESSAGE_LIFE,
            process=version.process,
            container_image=version.container_image,
            reason=reason or None,
            trace_parent=carrier.get("traceparent"),
        )
        await self._publish(message.subject, message.to_json(), message.message_id)

    async def _terminate(self, action: Terminate) -> None:
        now = time.time()
        clusters: dict[str, list[Instance]] = {}
        for instance in action.instances:
            entry = self._cache.instances.entry(instance.key)
            if entry is None:
                continue
            changed = entry.value.changed(now, draining_since=now, reason=action.reason)
            try:
                await self._cache.instances.update(instance.key, changed, entry.revision)
            except RevisionConflictError:
                # The agent's change wins. The next reconcile decides again.
                continue
            clusters.setdefault(instance.cluster_id, []).append(instance)
        for instances in clusters.values():
            await self._send_end(tuple(instances), action.reason, f"end-{new_id()}")
            _ended.add(len(instances))

    async def _send_end(self, instances: tuple[Instance, ...], reason: str, message_id: str) -> None:
        """Send a termination message for instances of one version in one cluster."""
        message = TerminationMessage(
            message_id=message_id,
            cluster_id=instances[0].cluster_id,
            version_id=instances[0].version_id,
            instance_ids=tuple(each.id for each in instances),
            grace_seconds=TERMINATION_GRACE,
            issued_at=time.time(),
            reason=reason or None,
        )
        await self._publish(compute.terminate_subject(message.cluster_id), message.to_json(), message_id)

    async def _give_up(self, version: FunctionVersion | None, instance: Instance, reason: str) -> None:
        entry = self._cache.instances.entry(instance.key)
        if entry is None:
            return
        closed = entry.value.changed(
            time.time(), state=InstanceState.FAILED, category=LOST, reason=f"{LOST}: {reason}"
        )
        await self._cache.instances.update(instance.key, closed, entry.revision)
        _lost.add(1)
        _log.warning("instance %s given up: %s", instance.id, reason)
        text = f"instance {instance.id} on {instance.cluster_id} given up: {reason}"
        await self.emit_event(version, instance.version_id, text, instanceId=instance.id)

    async def remove(self, instance: Instance) -> None:
        """Remove the record of an instance that ended long ago, in case its agent does not."""
        entry = self._cache.instances.entry(instance.key)
        if entry is not None:
            await self._cache.instances.delete(instance.key, entry.revision)

    async def emit_event(
        self, version: FunctionVersion | None, version_id: str, text: str, **data: str
    ) -> None:
        """Publish a scaling event for users. It is not waited for and may get lost."""
        name = None if version is None else version.name
        event = Event(time.time(), "scaling", version_id, text, function_name=name, data=data)
        try:
            await self._client.publish(compute.event_subject(version_id), event.to_json())
        except (nats.errors.Error, OSError) as error:
            _log.debug("event not published: %s", describe_error(error))

    async def _publish(self, subject: str, body: bytes, message_id: str) -> None:
        headers = {"Nats-Msg-Id": message_id}
        await self._jetstream.publish(subject, body, headers, action=f"cannot publish to {subject}")
