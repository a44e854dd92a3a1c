"""The requests of a cluster: from messages to persisted instances, and to answered messages.

A creation message is acknowledged only when its request is stored and the control plane has answered for it.
Until then the broker is told now and then that it is in progress.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from nvcf_agent.icms.answers import Outcome
from nvcf_agent.icms.reports import Key, Wanted, WantedCalls
from nvcf_agent.messages import Delivery
from nvcf_agent.state import order as orders
from nvcf_agent.state import transitions
from nvcf_agent.state.back_off import RoomBackOff
from nvcf_agent.state.inventory import Inventory
from nvcf_agent.state.managed_instance import DEFAULT_GRACE_SECONDS, ManagedInstance
from nvcf_agent.state.message_handlers import (
    Created,
    Ignored,
    Known,
    NoRoom,
    by_own_clock,
    handle_creation,
    handle_termination,
)
from nvcf_agent.state.persisted_state import EndedInstance, PersistedState
from nvcf_agent.timings import Timings
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.messages import CreationMessage, TerminationMessage
from nvcf_proto.icms.names import MESSAGE_MAX_AGE_SECONDS
from nvcf_proto.icms.reports import InstanceState, StatusReport

_log = logging.getLogger(__name__)

# More deliveries than this do not wait for the control plane's answer at once.
MOST_WAITING = 256
_MOST_COPIES = 4
_LATER_SECONDS = 1.0


@dataclass(frozen=True)
class _Placed:
    """New instances of a request that are not stored yet."""

    instances: tuple[ManagedInstance, ...]
    stored: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Requests:
    """All instances by id, and the deliveries whose requests wait for their acknowledgement.

    `on_change` is called when an instance has changed, `on_known` with a request to be reported again.
    """

    inventory: Inventory
    persisted: PersistedState
    timings: Timings = field(default_factory=Timings)
    grace: float = DEFAULT_GRACE_SECONDS
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    on_change: Callable[[], None] = lambda: None
    on_known: Callable[[str], None] = lambda _: None
    refusing: bool = False
    """No new requests: the agent is stopping, or the cluster is cordoned."""
    instances: dict[str, ManagedInstance] = field(default_factory=dict)
    urgent: dict[str, float] = field(default_factory=dict)
    """Grace periods of new terminations, which may shorten a running one."""
    removed: set[str] = field(default_factory=set)
    """Requests whose objects in the cluster somebody has deleted."""
    _waiting: dict[str, list[Delivery]] = field(default_factory=dict)
    _handling: asyncio.Lock = field(default_factory=asyncio.Lock)
    _placed: dict[str, _Placed] = field(default_factory=dict)
    _wanted: WantedCalls = field(default_factory=WantedCalls)

    def __post_init__(self) -> None:
        self._room = RoomBackOff(self.timings)

    def set(self, instance: ManagedInstance) -> None:
        """Take over an instance's new state."""
        before = self.instances.get(instance.id)
        if before is None or before.phase is not instance.phase:
            level = logging.WARNING if instance.category is not None else logging.INFO
            reason = f" ({instance.category}: {instance.reason})" if instance.category is not None else ""
            name = instance.function_name
            _log.log(level, "instance %s of %s: %s%s", instance.id, name, instance.phase.value, reason)
        if before is not None and before.held_share != instance.held_share:
            self._room.freed()
        self.instances[instance.id] = instance
        self.on_change()

    def replace_inventory(self, inventory: Inventory) -> None:
        """Take over what the cluster has now. Orders that found no room are tried again."""
        self.inventory = inventory
        self._room.freed()
        self.on_change()

    def of(self, request_id: str) -> list[ManagedInstance]:
        """Return the instances of a request."""
        return [each for each in self.instances.values() if each.request_id == request_id]

    # messages

    async def create(self, delivery: Delivery) -> None:
        """Handle a creation message. Raises `InvalidRecord` and `StoreError`."""
        message = by_own_clock(CreationMessage.from_json(delivery.body), delivery.age, self.wall())
        request_id = message.request_id
        async with self._handling:
            made = await self._place(message, delivery)
        if not made:
            return
        # Others are placed meanwhile: to store a request may take some calls.
        try:
            await self.persisted.save(made)
            for instance in made:
                self.set(instance)
        finally:
            self._placed.pop(request_id).stored.set()
        await self._wait_or_ack(request_id, delivery)

    async def _place(self, message: CreationMessage, delivery: Delivery) -> tuple[ManagedInstance, ...]:
        """Return the new instances of a message, which hold their shares from now on.

        Without new ones, the delivery is answered here.
        """
        request_id = message.request_id
        known = {each.request_id for each in self.instances.values()}
        if request_id in self._placed or (request_id not in known and self._later()):
            await delivery.again(_LATER_SECONDS)
            return ()
        gpu, now = orders.gpu(message), self.monotonic()
        if request_id not in known and (left := self._room.left(gpu, now)) > 0:
            await delivery.again(left)
            return ()
        placed = (each for placed in self._placed.values() for each in placed.instances)
        result = handle_creation(
            message,
            inventory=self.inventory,
            held=[each.held_share for each in (*self.instances.values(), *placed)],
            known=known,
            ended=self.persisted.ended.keys(),
            wall=self.wall(),
        )
        match result:
            case Created(instances):
                self._room.placed(gpu)
                self._placed[request_id] = _Placed(instances)
                return instances
            case Known():
                self._renew(message)
                self.on_known(request_id)
                await self._wait_or_ack(request_id, delivery)
            case Ignored(reason):
                _log.info("request %s: %s", request_id, reason)
                await delivery.ack()
            case NoRoom(gpu, reason):
                pause = self._room.no_room(gpu, now, random.random())  # noqa: S311 - only spreads tries
                _log.info("request %s waits %.1f s: %s", request_id, pause, reason)
                await delivery.again(pause)
        return ()

    def _renew(self, message: CreationMessage) -> None:
        """Take over a repeated order, which expires later, where the first one was not acknowledged yet."""
        for instance in self.of(message.request_id):
            if not instance.acknowledged:
                self.set(replace(instance, order=message))

    def _later(self) -> bool:
        return self.refusing or len(self._waiting) >= MOST_WAITING

    async def _wait_or_ack(self, request_id: str, delivery: Delivery) -> None:
        if all(each.acknowledged for each in self.of(request_id)):
            await delivery.ack()
        else:
            self._waiting[request_id] = [*self._waiting.get(request_id, [])[1 - _MOST_COPIES :], delivery]

    async def terminate(self, delivery: Delivery) -> None:
        """Handle a termination message. Raises `InvalidRecord` and `StoreError`."""
        message = TerminationMessage.from_json(delivery.body)
        while True:
            await self._handling.acquire()
            placed = self._placed.get(message.request_id)
            if placed is None:
                break
            # Its instances are known once they are stored.
            self._handling.release()
            await placed.stored.wait()
        try:
            result = handle_termination(
                message, known=self.instances, wall=self.wall(), default_grace=self.grace
            )
            for instance in result.instances:
                self.urgent[instance.id] = instance.grace
                self.set(instance)
            await self.end_unknown(dict.fromkeys(result.unknown, message.request_id), Cause.BY_USER)
        finally:
            self._handling.release()
        await self.persisted.save(result.instances)
        await delivery.ack()

    async def end_unknown(self, requests: Mapping[str, str], cause: Cause) -> None:
        """Remember instances that do not exist here, by id with their request; they are reported ended.

        Raises `StoreError`.
        """
        if not requests:
            return
        wall = self.wall()
        ended = {
            instance_id: EndedInstance(
                request_id=request_id, cause=cause, until=wall + MESSAGE_MAX_AGE_SECONDS
            )
            for instance_id, request_id in requests.items()
        }
        await self.persisted.save_ended(ended, wall)
        self.on_change()

    async def keep_waiting(self) -> None:
        """Tell the broker now and then that waiting messages are in progress, until cancelled."""
        while True:
            await asyncio.sleep(self.timings.in_progress)
            for delivery in [each for waiting in self._waiting.values() for each in waiting]:
                await delivery.in_progress()

    async def release(self) -> None:
        """Have waiting messages delivered again soon: the agent stops, and the next one takes them."""
        waiting = [each for deliveries in self._waiting.values() for each in deliveries]
        self._waiting.clear()
        for delivery in waiting:
            await delivery.again(0.1)

    # answers of the control plane

    def wanted_calls(self) -> dict[Key, Wanted]:
        """Return all that the control plane is to know."""
        return self._wanted.of(self.instances.values(), self.persisted.ended)

    async def on_outcome(self, key: Key, call: Wanted, outcome: Outcome) -> None:
        """Act on an answer of the control plane. Raises `StoreError`."""
        if key.instance_id is None:
            await self._on_acknowledged(key.request_id, closed=outcome is Outcome.CLOSED)
        elif (instance := self.instances.get(key.instance_id)) is not None:
            if outcome is Outcome.CLOSED:
                self.end(instance, "the control plane has closed its request", Cause.PRECONDITION_FAILURE)
            elif isinstance(call.body, StatusReport):
                self.set(replace(self.instances[key.instance_id], reported=call.body.instance_state))
            await self.persisted.save([self.instances[key.instance_id]])
        elif (gone := self.persisted.ended.get(key.instance_id)) is not None:
            await self.persisted.save_ended({key.instance_id: gone.replace(reported=True)}, self.wall())

    async def _on_acknowledged(self, request_id: str, *, closed: bool) -> None:
        for instance in self.of(request_id):
            if closed:
                self.end(instance, "the control plane has closed its request", Cause.PRECONDITION_FAILURE)
            self.set(transitions.acknowledged(self.instances[instance.id]))
        await self.persisted.save(self.of(request_id))
        for delivery in self._waiting.pop(request_id, ()):
            await delivery.ack()

    def end(self, instance: ManagedInstance, reason: str, cause: Cause, grace: float | None = None) -> None:
        """End an instance for another reason than a message."""
        self.set(
            transitions.terminating(
                instance, reason, self.grace if grace is None else grace, self.wall(), cause
            )
        )

    def remove(self, request_id: str) -> None:
        """End the instances of a request that somebody has deleted, and forget them soon."""
        self.removed.add(request_id)
        for instance in self.of(request_id):
            if not instance.is_ending:
                self.end(instance, "its request was deleted in the cluster", Cause.MAINTENANCE)
        self.on_change()

    def tell_again(self, request_id: str) -> None:
        """Report a request's instances again, ended ones too: the control plane knows something else."""
        for instance in self.of(request_id):
            if instance.reported is InstanceState.TERMINATED:
                self.set(replace(instance, reported=None))
        self.on_known(request_id)

    def has_unreported_ends(self) -> bool:
        """Return whether the control plane does not know yet that all instances have ended."""
        return any(each.reported is not InstanceState.TERMINATED for each in self.instances.values())

    async def drop_expired(self) -> None:
        """Forget requests whose order ran out before the control plane answered. Raises `StoreError`.

        They were never made. An end that was asked for is still reported.
        """
        wall = self.wall()
        for instance in list(self.instances.values()):
            expires_at = instance.order.expires_at
            if instance.acknowledged or expires_at is None or wall <= expires_at:
                continue
            if instance.cause is Cause.BY_USER:
                self.set(transitions.acknowledged(instance))
                continue
            name = instance.id
            _log.warning("instance %s is dropped: its order expired before the control plane answered", name)
            await self.persisted.forget(instance.id)
            self.instances.pop(instance.id, None)
            self._room.freed()
            self.on_change()
            for delivery in self._waiting.pop(instance.request_id, ()):
                await delivery.ack()
