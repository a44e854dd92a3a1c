"""The counts that all gateway replicas share, over the broker (core messages, nothing stored).

Each version is counted by one replica, its owner: the others ask it. Owners tell all replicas what they have
granted, so that whoever takes a version over from one that died knows its counts but for the last moments.
An owner that does not answer costs a call at most `OWNER_PATIENCE` seconds, twice; then this replica decides
by what it knows itself: calls are never held up by an outage.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack

import nats.errors
from nats.aio.msg import Msg
from opentelemetry import metrics

from nvcf_broker.connection import BrokerClient, describe_error
from nvcf_broker.requests import BrokerRequests, raise_if_cancelled
from nvcf_gateway.ratelimit import wire
from nvcf_gateway.ratelimit.book import Book, Grant
from nvcf_gateway.ratelimit.members import Members
from nvcf_gateway.ratelimit.policy import Limit
from nvcf_proto import subjects

_log = logging.getLogger(__name__)

OWNER_PATIENCE = 0.25
JOIN_PATIENCE = 0.5
SIGN_OF_LIFE_SECONDS = 1.0
COUNTS_LAG_SECONDS = 0.01
COMPLAIN_SECONDS = 10.0

_meter = metrics.get_meter("nvcf_gateway")
_failed_open = _meter.create_counter(
    "nvcf_gateway_rate_limit_local_decisions",
    description="Rate limit decisions made without the replica that counts: it or the broker did not answer",
)


class SharedCounts:
    """One replica's part in counting. Run it with `start`."""

    def __init__(self, client: BrokerClient, requests: BrokerRequests, gateway_id: str) -> None:
        self._client = client
        self._requests = requests
        self._id = gateway_id
        self._book = Book()
        self._members = Members(gateway_id)
        self._dirty = asyncio.Event()
        self._complained = -COMPLAIN_SECONDS
        self._rejoin = False
        self.local_decisions = 0

    @property
    def members(self) -> frozenset[str]:
        """Ids of the replicas known to be alive, this one included."""
        return self._members.alive()

    async def start(self, stack: AsyncExitStack) -> None:
        """Learn who else there is, and take part until `stack` is closed."""
        subscribe = self._client.subscribe
        await subscribe(subjects.RATE_LIMIT_COUNTS_SUBJECT, cb=self._counts_told)
        await subscribe(subjects.RATE_LIMIT_MEMBERS_SUBJECT, cb=self._members_told)
        await subscribe(subjects.rate_limit_take_subject(self._id), cb=self._asked)
        await self._client.flush(timeout=5)
        await self._join()
        await subscribe(subjects.RATE_LIMIT_JOIN_SUBJECT, cb=self._joined)
        await self._client.flush(timeout=5)
        stack.callback(self._client.on_reconnect(self._reconnected))
        task = asyncio.create_task(self._run(), name="rate limit counts")
        stack.push_async_callback(self._stop, task)

    async def _join(self) -> None:
        body = wire.encode_members([self._id])
        try:
            answer = await self._requests.request(
                subjects.RATE_LIMIT_JOIN_SUBJECT, body, timeout=JOIN_PATIENCE
            )
        except (nats.errors.Error, TimeoutError):
            return  # nobody else is there yet
        await self._members_told(answer)

    async def _stop(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait({task})
        if self._client.is_connected:
            await self._publish(
                subjects.RATE_LIMIT_MEMBERS_SUBJECT, wire.encode_members([self._id], gone=True)
            )

    # --- decisions

    def owns(self, owner_key: str) -> bool:
        """Whether this replica is the one that counts."""
        return self._members.owner(owner_key) == self._id

    async def take(self, owner_key: str, limits: tuple[Limit, ...], wanted: int) -> Grant:
        """Grant as many of `wanted` calls as the limits allow; never raises, never waits for long."""
        for _ in range(2):
            owner = self._members.owner(owner_key)
            if owner == self._id:
                return self.take_here(limits, wanted)
            if not self._client.is_connected:
                break
            try:
                answer = await self._requests.request(
                    subjects.rate_limit_take_subject(owner),
                    wire.encode_take(limits, wanted),
                    timeout=OWNER_PATIENCE,
                )
                return wire.decode_grant(answer.data, limits)
            except (nats.errors.Error, TimeoutError, wire.InvalidMessage) as error:
                self._complain(f"replica {owner} does not answer: {describe_error(error)}")
                self._members.gone(owner)
        self.local_decisions += 1
        _failed_open.add(1)
        self._complain("limits are kept by each replica alone for now")
        return self.take_here(limits, wanted)

    def take_here(self, limits: tuple[Limit, ...], wanted: int) -> Grant:
        """Decide by what this replica knows."""
        grant = self._book.take(limits, wanted, time.time())
        if grant.granted:
            self._dirty.set()
        return grant

    def _complain(self, text: str) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_SECONDS:
            self._complained = now
            _log.warning("rate limits: %s", text, extra={"local_decisions": self.local_decisions})

    # --- messages

    async def _asked(self, message: Msg) -> None:
        try:
            limits, wanted = wire.decode_take(message.data)
        except wire.InvalidMessage as error:
            self._complain(str(error))
            return
        # Whoever asks takes this replica for the owner. If the two see different members, the counts
        # still add up: each knows what the other has granted.
        grant = self.take_here(limits, wanted)
        await self._publish(message.reply, wire.encode_grant(grant, limits))

    async def _counts_told(self, message: Msg) -> None:
        try:
            replica, counts = wire.decode_counts(message.data)
        except wire.InvalidMessage as error:
            self._complain(str(error))
            return
        if replica != self._id:
            self._book.merge(replica, counts)

    async def _members_told(self, message: Msg) -> None:
        try:
            members, gone = wire.decode_members(message.data)
        except wire.InvalidMessage as error:
            self._complain(str(error))
            return
        for member in members:
            if gone:
                self._members.gone(member)
            elif self._members.heard(member, time.monotonic()):
                _log.info("rate limits: replica joined", extra={"replica": member})
                await self._tell_everything()

    async def _joined(self, message: Msg) -> None:
        await self._members_told(message)
        await self._publish(message.reply, wire.encode_members(self._members.alive()))

    def _reconnected(self) -> None:
        # What was told meanwhile has not reached this replica, nor its own word the others.
        self._rejoin = True
        self._dirty.set()

    # --- telling

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tell_counts())
            group.create_task(self._give_signs_of_life())

    async def _tell_counts(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self._rejoin:
                self._rejoin = False
                await self._publish(subjects.RATE_LIMIT_MEMBERS_SUBJECT, wire.encode_members([self._id]))
                await self._tell_everything()
            if (changes := self._book.changes()) and len(self._members.alive()) > 1:
                await self._publish(subjects.RATE_LIMIT_COUNTS_SUBJECT, wire.encode_counts(self._id, changes))
            await asyncio.sleep(COUNTS_LAG_SECONDS)

    async def _tell_everything(self) -> None:
        for portion in wire.portions(self._book.everything()):
            await self._publish(subjects.RATE_LIMIT_COUNTS_SUBJECT, wire.encode_counts(self._id, portion))

    async def _give_signs_of_life(self) -> None:
        while True:
            if self._client.is_connected:
                await self._publish(subjects.RATE_LIMIT_MEMBERS_SUBJECT, wire.encode_members([self._id]))
            self._members.expire(time.monotonic())
            self._book.forget(time.time())
            await asyncio.sleep(SIGN_OF_LIFE_SECONDS)

    async def _publish(self, subject: str, body: bytes) -> None:
        try:
            await self._client.publish(subject, body)
            raise_if_cancelled()
        except (nats.errors.Error, OSError) as error:
            self._complain(f"cannot tell the other replicas: {describe_error(error)}")
