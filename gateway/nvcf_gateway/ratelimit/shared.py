"""Counts that all gateway replicas share, over the broker (core messages, nothing is stored).

One replica counts the calls of a version: its owner. The others ask it. An owner sends its grants to all
replicas, so that the replica that takes a version over from a dead owner knows all counts except the last
moments. An owner that does not respond costs a call at most `OWNER_TIMEOUT` seconds, twice. After that this
replica decides by its own counts: an outage never holds a call up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from typing import TypeVar

import msgspec
import nats.errors
from nats.aio.msg import Msg
from opentelemetry import metrics

from nvcf_broker.connection import BrokerClient, describe_error
from nvcf_broker.requests import ReplyInbox, raise_if_cancelled
from nvcf_gateway.ratelimit.counters import Counters, Grant
from nvcf_gateway.ratelimit.members import Members
from nvcf_gateway.ratelimit.messages import (
    Acquire,
    GrantCounts,
    Granted,
    Heartbeat,
    InvalidMessage,
    decode,
    encode,
    portions,
)
from nvcf_gateway.ratelimit.policy import Limit
from nvcf_proto import subjects

T = TypeVar("T")

_log = logging.getLogger(__name__)

OWNER_TIMEOUT = 0.25
JOIN_TIMEOUT = 0.5
HEARTBEAT_SECONDS = 1.0
COUNTS_LAG_SECONDS = 0.01
WARN_EVERY_SECONDS = 10.0

_meter = metrics.get_meter("nvcf_gateway")
_failed_open = _meter.create_counter(
    "nvcf_gateway_rate_limit_local_decisions",
    description="Rate limit decisions of this replica alone, because the owner or the broker did not respond",
)


class SharedCounters:
    """One replica's part in counting. Run it with `start`."""

    def __init__(self, client: BrokerClient, requests: ReplyInbox, gateway_id: str) -> None:
        self._client = client
        self._requests = requests
        self._id = gateway_id
        self._counters = Counters()
        self._members = Members(gateway_id)
        self._changed = asyncio.Event()
        self._warned = -WARN_EVERY_SECONDS
        self._rejoin = False
        self.local_decisions = 0

    @property
    def members(self) -> frozenset[str]:
        """Ids of the replicas known to be alive, this one included."""
        return self._members.alive()

    async def start(self, stack: AsyncExitStack) -> None:
        """Find the other replicas, and take part until `stack` is closed."""
        subscribe = self._client.subscribe
        await subscribe(subjects.RATE_LIMIT_COUNTS_SUBJECT, cb=self._on_counts)
        await subscribe(subjects.RATE_LIMIT_MEMBERS_SUBJECT, cb=self._on_heartbeat)
        await subscribe(subjects.rate_limit_take_subject(self._id), cb=self._on_acquire)
        await self._client.flush(timeout=5)
        await self._join()
        await subscribe(subjects.RATE_LIMIT_JOIN_SUBJECT, cb=self._on_join)
        await self._client.flush(timeout=5)
        stack.callback(self._client.on_reconnect(self._on_reconnect))
        task = asyncio.create_task(self._run(), name="rate limit counts")
        stack.push_async_callback(self._stop, task)

    async def _join(self) -> None:
        body = encode(Heartbeat([self._id]))
        try:
            response = await self._requests.request(
                subjects.RATE_LIMIT_JOIN_SUBJECT, body, timeout=JOIN_TIMEOUT
            )
        except (nats.errors.Error, TimeoutError):
            return  # no other replica is there yet
        await self._on_heartbeat(response)

    async def _stop(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait({task})
        if self._client.is_connected:
            await self._publish(subjects.RATE_LIMIT_MEMBERS_SUBJECT, Heartbeat([self._id], gone=True))

    # --- decisions

    def owns(self, owner_key: str) -> bool:
        """Whether this replica counts the calls of `owner_key`."""
        return self._members.owner(owner_key) == self._id

    async def acquire(self, owner_key: str, limits: tuple[Limit, ...], wanted: int) -> Grant:
        """Grant as many of `wanted` calls as the limits allow; never raises, never waits for long."""
        for _ in range(2):
            owner = self._members.owner(owner_key)
            if owner == self._id:
                return self.acquire_locally(limits, wanted)
            if not self._client.is_connected:
                break
            try:
                response = await self._requests.request(
                    subjects.rate_limit_take_subject(owner),
                    encode(Acquire(limits, wanted)),
                    timeout=OWNER_TIMEOUT,
                )
                return decode(response.data, Granted).grant(limits)
            except (nats.errors.Error, TimeoutError, InvalidMessage) as error:
                self._warn(f"replica {owner} does not respond: {describe_error(error)}")
                self._members.remove(owner)
        self.local_decisions += 1
        _failed_open.add(1)
        self._warn("each replica applies the limits alone for now")
        return self.acquire_locally(limits, wanted)

    def acquire_locally(self, limits: tuple[Limit, ...], wanted: int) -> Grant:
        """Decide by the counts of this replica."""
        grant = self._counters.acquire(limits, wanted, time.time())
        if grant.granted:
            self._changed.set()
        return grant

    def _warn(self, text: str) -> None:
        now = time.monotonic()
        if now - self._warned >= WARN_EVERY_SECONDS:
            self._warned = now
            _log.warning("rate limits: %s", text, extra={"local_decisions": self.local_decisions})

    # --- messages of other replicas

    def _read(self, message: Msg, kind: type[T]) -> T | None:
        try:
            return decode(message.data, kind)
        except InvalidMessage as error:
            self._warn(str(error))
            return None

    async def _on_acquire(self, message: Msg) -> None:
        request = self._read(message, Acquire)
        if request is None:
            return
        # The sender takes this replica for the owner. If the two see different members, the counts still add
        # up: each knows what the other has granted.
        grant = self.acquire_locally(request.limits, request.wanted)
        await self._publish(message.reply, Granted.of(grant, request.limits))

    async def _on_counts(self, message: Msg) -> None:
        counts = self._read(message, GrantCounts)
        if counts is not None and counts.replica != self._id:
            self._counters.merge(counts.replica, counts.by_slot())

    async def _on_heartbeat(self, message: Msg) -> None:
        heartbeat = self._read(message, Heartbeat)
        if heartbeat is None:
            return
        for member in heartbeat.members:
            if heartbeat.gone:
                self._members.remove(member)
            elif self._members.seen(member, time.monotonic()):
                _log.info("rate limits: replica joined", extra={"replica": member})
                await self._publish_everything()

    async def _on_join(self, message: Msg) -> None:
        await self._on_heartbeat(message)
        await self._publish(message.reply, Heartbeat(sorted(self._members.alive())))

    def _on_reconnect(self) -> None:
        # This replica has missed messages of the others, and they have missed its own.
        self._rejoin = True
        self._changed.set()

    # --- publishing

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publish_changes())
            group.create_task(self._publish_heartbeats())

    async def _publish_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._rejoin:
                self._rejoin = False
                await self._publish(subjects.RATE_LIMIT_MEMBERS_SUBJECT, Heartbeat([self._id]))
                await self._publish_everything()
            if (changes := self._counters.changes()) and len(self._members.alive()) > 1:
                await self._publish(subjects.RATE_LIMIT_COUNTS_SUBJECT, GrantCounts.of(self._id, changes))
            await asyncio.sleep(COUNTS_LAG_SECONDS)

    async def _publish_everything(self) -> None:
        for portion in portions(self._counters.everything()):
            await self._publish(subjects.RATE_LIMIT_COUNTS_SUBJECT, GrantCounts.of(self._id, portion))

    async def _publish_heartbeats(self) -> None:
        while True:
            if self._client.is_connected:
                await self._publish(subjects.RATE_LIMIT_MEMBERS_SUBJECT, Heartbeat([self._id]))
            self._members.expire(time.monotonic())
            self._counters.forget(time.time())
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _publish(self, subject: str, message: msgspec.Struct) -> None:
        try:
            await self._client.publish(subject, encode(message))
            raise_if_cancelled()
        except (nats.errors.Error, OSError) as error:
            self._warn(f"cannot send to the other replicas: {describe_error(error)}")
