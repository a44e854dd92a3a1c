"""Making decisions happen: instance records first, messages after.

The record is what counts: a replica that dies between the two leaves a PENDING record, and whoever leads next
sends the message again. Agents do nothing for an instance they know, so sending twice is harmless.
"""

from __future__ import annotations

import logging
import time

import nats.errors
from nats.aio.client import Client
from opentelemetry import metrics

from nvcf_autoscaler.shell.plan import Action, Create, GiveUp, Resend, Terminate
from nvcf_autoscaler.shell.world import World
from nvcf_broker.connection import describe_error
from nvcf_broker.errors import BrokerUnavailableError
from nvcf_broker.requests import BrokerRequests
from nvcf_proto import compute
from nvcf_proto.compute import CreationMessage, Event, TerminationMessage
from nvcf_proto.ids import new_id
from nvcf_proto.models import Deployment, FunctionVersion, Instance, InstanceState

_log = logging.getLogger(__name__)

MESSAGE_LIFE = 60.0
TERMINATION_GRACE = 30.0
PUBLISH_TIMEOUT = 3.0

_meter = metrics.get_meter("nvcf_autoscaler")
_created = _meter.create_counter("nvcf.autoscaler.instances.created", unit="{instance}")
_ended = _meter.create_counter("nvcf.autoscaler.instances.ended", unit="{instance}")


class Actuator:
    """Carries out actions of one version. All methods raise BrokerError."""

    def __init__(self, client: Client, requests: BrokerRequests, world: World) -> None:
        self._client = client
        self._requests = requests
        self._world = world

    async def do(self, version: FunctionVersion, deployment: Deployment, action: Action) -> None:
        """Carry out one action of a deployed version."""
        match action:
            case Create():
                for _ in range(action.count):
                    await self._create(version, deployment, action)
            case Resend():
                await self._send_creation(version, deployment, action.instance)
            case _:
                await self.end(action)

    async def end(self, action: Action) -> None:
        """Carry out an action that ends instances; others need a deployment."""
        match action:
            case Terminate():
                await self._terminate(action)
            case GiveUp():
                await self._give_up(action.instance, action.reason)
            case _:
                pass

    async def _create(self, version: FunctionVersion, deployment: Deployment, action: Create) -> None:
        now = time.time()
        specification = next(
            spec
            for index, spec in enumerate(deployment.specifications)
            if spec.id(index) == action.specification_id
        )
        instance = Instance(
            id=new_id(),
            function_id=version.function_id,
            version_id=version.id,
            cluster_id=action.cluster_id,
            state=InstanceState.PENDING,
            updated_at=now,
            created_at=now,
            specification_id=action.specification_id,
            gpu=specification.gpu,
        )
        await self._world.instances.create(instance.key, instance)
        _created.add(1)
        await self._send_creation(version, deployment, instance)

    async def _send_creation(
        self, version: FunctionVersion, deployment: Deployment, instance: Instance
    ) -> None:
        found = [
            spec
            for index, spec in enumerate(deployment.specifications)
            if spec.id(index) == instance.specification_id
        ]
        if not found:
            return
        message = CreationMessage(
            message_id=f"create-{instance.id}",
            cluster_id=instance.cluster_id,
            function_id=version.function_id,
            version_id=version.id,
            function_name=version.name,
            nca_id=version.nca_id,
            specification_id=instance.specification_id or "",
            gpu=found[0].gpu,
            instance_type=found[0].instance_type,
            gpus_per_instance=found[0].gpus_per_instance,
            max_request_concurrency=found[0].max_request_concurrency,
            instance_ids=(instance.id,),
            issued_at=instance.created_at,
            expires_at=instance.created_at + MESSAGE_LIFE,
            process=version.process,
            container_image=version.container_image,
        )
        await self._publish(message.subject, message.to_json(), message.message_id)

    async def _terminate(self, action: Terminate) -> None:
        now = time.time()
        clusters: dict[str, list[Instance]] = {}
        for instance in action.instances:
            entry = self._world.instances.entry(instance.key)
            if entry is None:
                continue
            changed = entry.value.changed(now, draining_since=now, reason=action.reason)
            # What the agent wrote meanwhile wins; the next look decides anew.
            await self._world.instances.update(instance.key, changed, entry.revision)
            clusters.setdefault(instance.cluster_id, []).append(instance)
        for cluster_id, instances in clusters.items():
            message = TerminationMessage(
                message_id=f"end-{new_id()}",
                cluster_id=cluster_id,
                version_id=instances[0].version_id,
                instance_ids=tuple(each.id for each in instances),
                grace_seconds=TERMINATION_GRACE,
                issued_at=now,
                reason=action.reason,
            )
            subject = compute.terminate_subject(cluster_id)
            await self._publish(subject, message.to_json(), message.message_id)
            _ended.add(len(instances))

    async def _give_up(self, instance: Instance, reason: str) -> None:
        entry = self._world.instances.entry(instance.key)
        if entry is None:
            return
        closed = entry.value.changed(time.time(), state=InstanceState.FAILED, reason=f"lost: {reason}")
        await self._world.instances.update(instance.key, closed, entry.revision)
        _log.warning("instance %s given up: %s", instance.id, reason)

    async def remove(self, instance: Instance) -> None:
        """Remove the record of an instance that ended long ago and whose agent does not do it."""
        entry = self._world.instances.entry(instance.key)
        if entry is not None:
            await self._world.instances.delete(instance.key, entry.revision)

    async def tell(self, version: FunctionVersion | None, version_id: str, text: str, **data: str) -> None:
        """Record a scaling event for people; a lost one is no harm."""
        name = None if version is None else version.name
        event = Event(time.time(), "scaling", version_id, text, function_name=name, data=data)
        try:
            await self._client.publish(compute.event_subject(version_id), event.to_json())
        except (nats.errors.Error, OSError) as error:
            _log.debug("event not recorded: %s", describe_error(error))

    async def _publish(self, subject: str, body: bytes, message_id: str) -> None:
        headers = {"Nats-Msg-Id": message_id}
        try:
            await self._requests.request(subject, body, timeout=PUBLISH_TIMEOUT, headers=headers)
        except (nats.errors.Error, TimeoutError) as error:
            raise BrokerUnavailableError(f"cannot publish to {subject}: {describe_error(error)}") from error
