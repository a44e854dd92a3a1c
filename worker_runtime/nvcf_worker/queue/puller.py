"""Pulling requests of one region (protocol.md, section 2.5)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import nats.errors

from nvcf_broker.requests import raise_if_cancelled
from nvcf_proto import settings, subjects
from nvcf_worker.errors import ControlError
from nvcf_worker.process.durations import Backoff
from nvcf_worker.queue.planner import NOTHING_AFTER, PullPlanner, Slots

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log = logging.getLogger("nvcf_worker")

LOOK_UP_BACKOFF = Backoff(first=0.1, limit=10.0)
LOOK_UP_TIMEOUT = 5.0
DEFAULT_ACK_WAIT = 30.0
ANSWERS_AGAIN_SECONDS = 1.0
"""In this time a broker that answers again sends the heartbeats that are due."""

# In a broker cluster a pull outlives its worker: a node does not learn that the inbox of another account on
# another node is gone, sends the next request there, and that waits for its ack wait. So pulls are short.
CLUSTER_MAX_WAIT = 3.0
EXPIRED_AFTER = CLUSTER_MAX_WAIT + 0.5

_EXPIRES = int(settings.PULL_MAX_WAIT * 1e9)
_HEARTBEAT = int(settings.PULL_IDLE_HEARTBEAT * 1e9)
_CLUSTER_EXPIRES = int(CLUSTER_MAX_WAIT * 1e9)


class ConsumerLimits(NamedTuple):
    """Limits of the request consumer.

    ack_wait: seconds after which it delivers again what is not acknowledged. max_deliver: how often it
    delivers a request at most; 0 for no limit.
    """

    ack_wait: float = DEFAULT_ACK_WAIT
    max_deliver: int = 0


class Receiver(Protocol):
    """Gets the requests."""

    async def receive(self, message: Msg, region: str, limits: ConsumerLimits) -> None:
        """Take a request, or return it to the queue if there is no slot."""


Provision = Callable[[str], Awaitable[None]]


class RegionPuller:
    """Keeps as many requests pulled as there are free slots. Runs in one task, which `wake` wakes up."""

    def __init__(
        self,
        connection: Client,
        version_id: str,
        region: str,
        slots: Slots,
        receiver: Receiver,
        provision: Provision,
        preferred: RegionPuller | None = None,
    ) -> None:
        self._preferred = preferred
        self.region = region
        self.ready = False
        self.limits = ConsumerLimits()
        self._connection = connection
        self._slots = slots
        self._receiver = receiver
        self._provision = provision
        self._planner = PullPlanner(slots.total)
        stream = subjects.request_stream(region, version_id)
        consumer = subjects.request_consumer(region, version_id)
        self._info_subject = subjects.consumer_info_subject(stream, consumer)
        self._pull_subject = subjects.next_message_subject(stream, consumer)
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._withdrawn: list[tuple[float, Subscription]] = []
        self._trouble = False
        self._stopped = False
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Check again: slots or the connection changed, or time has passed."""
        self._wake.set()

    def has_nothing(self, now: float) -> bool:
        """Return whether neither this region nor a preferred one has a request at the moment."""
        here = not self.ready or self._planner.has_nothing(now)
        return here and (self._preferred is None or self._preferred.has_nothing(now))

    def look_up_again(self) -> None:
        """Look the consumer up again: the broker may have lost the pulls, e.g. after a reconnect."""
        self._trouble = True
        self._wake.set()

    async def run(self) -> None:
        """Pull until cancelled."""
        while True:
            # A new inbox each time: the broker may still hold pulls for the old one, and their requests
            # would come in addition to the new ones.
            await self.withdraw()
            raise_if_cancelled()
            await self._subscribe()
            await self._look_up()
            self.ready = True
            log.info("pulling requests of region %s", self.region)
            try:
                await self._pull_until_trouble()
            finally:
                self.ready = False

    async def stop(self) -> None:
        """Stop pulling and withdraw all pulls; requests that still arrive go to the receiver.

        In a broker cluster this takes until the last pull has expired.
        """
        self._stopped = True
        self.ready = False
        await self.withdraw()
        while self._withdrawn:
            at, subscription = self._withdrawn[0]
            left = at + EXPIRED_AFTER - time.monotonic()
            if left > 0 and self._connection.is_connected:
                await asyncio.sleep(left)
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
            self._withdrawn = [each for each in self._withdrawn if each[1] is not subscription]

    async def _pull_until_trouble(self) -> None:
        while not self._trouble:
            await self._pull()
            await self._wake.wait()
            self._wake.clear()
            if self._planner.stale(time.monotonic()) and await self._lost_pulls():
                log.info("no heartbeat from the broker in region %s; pulling anew", self.region)
                return

    async def _lost_pulls(self) -> bool:
        """Wait until a silent broker answers; return whether it has forgotten the pulls.

        One that was only stopped for a while goes on with them. What it sends at that moment would wait for
        its ack wait if the pulls were withdrawn now.
        """
        log.info("no heartbeat from the broker in region %s", self.region)
        for attempt in itertools.count():
            problem = await self._try_look_up()
            raise_if_cancelled()
            if problem is None or self._trouble:
                break
            await asyncio.sleep(LOOK_UP_BACKOFF.delay(attempt, random.random()))  # noqa: S311 - jitter
        await asyncio.sleep(ANSWERS_AGAIN_SECONDS)
        return self._planner.stale(time.monotonic())

    async def _pull(self) -> None:
        if self._planner.outstanding > self._slots.free:
            # Another region filled the slots. Requests of this one would have to go back to the queue.
            await self.withdraw()
            await self._subscribe()
        preferred = self._preferred
        if preferred is not None and self._slots.free and not preferred.has_nothing(time.monotonic()):
            # If two regions are asked for the same slot, both may send a request. One of them goes back to
            # the queue, for nothing.
            asyncio.get_running_loop().call_later(NOTHING_AFTER, self.wake)
            return
        while not self._stopped and not self._trouble and self._connection.is_connected:
            batch = self._planner.ask(self._slots.free, time.monotonic())
            if not batch:
                return
            if in_cluster(self._connection):
                # It expires before a missed heartbeat would be noticed.
                request = b'{"batch":%d,"expires":%d}' % (batch, _CLUSTER_EXPIRES)
            else:
                request = b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (batch, _EXPIRES, _HEARTBEAT)
            try:
                await self._connection.publish(self._pull_subject, request, reply=f"{self._inbox}.{batch}")
            except nats.errors.Error as error:
                log.warning("cannot pull in region %s: %s", self.region, error)
                self._trouble = True

    async def _subscribe(self) -> None:
        self._inbox = f"{self._connection.new_inbox()}"
        self._subscription = await self._connection.subscribe(
            f"{self._inbox}.*",
            cb=functools.partial(self._on_message, self._inbox),
            # The slots bound it already; a request dropped here would wait for its ack wait.
            pending_bytes_limit=0,
        )

    async def withdraw(self) -> None:
        """Withdraw all pulls; the broker then gives their requests to other workers.

        Draining first delivers what is on its way, so that nothing waits for its ack wait. In a cluster that
        is not enough (see CLUSTER_MAX_WAIT): there the subscription stays until the pulls have expired, and
        the receiver returns what it has no slot for.
        """
        subscription, self._subscription = self._subscription, None
        self._planner.reset()
        if subscription is None or self._connection.is_closed or self._connection.is_draining:
            return
        if in_cluster(self._connection):
            await self._listen_on(subscription)
            return
        try:
            if self._connection.is_connected:
                await subscription.drain()  # type: ignore[no-untyped-call]
            else:
                await subscription.unsubscribe()
        except (nats.errors.Error, TimeoutError) as error:
            log.debug("withdrawing pulls: %s", error)

    async def _listen_on(self, subscription: Subscription) -> None:
        """Keep the subscription of withdrawn pulls until they have expired."""
        now = time.monotonic()
        self._withdrawn.append((now, subscription))
        while now - self._withdrawn[0][0] > EXPIRED_AFTER:
            _, expired = self._withdrawn.pop(0)
            with contextlib.suppress(nats.errors.Error):
                await expired.unsubscribe()

    async def _on_message(self, inbox: str, message: Msg) -> None:
        status = message.headers.get("Status") if message.headers else None
        is_current = inbox == self._inbox and self._subscription is not None
        if status is not None and not message.reply.startswith("$JS.ACK."):
            if is_current:
                self._on_status(message, status)
            return
        if is_current:
            self._planner.delivered(time.monotonic())
        self._wake.set()
        await self._receiver.receive(message, self.region, self.limits)

    def _on_status(self, message: Msg, status: str) -> None:
        headers = message.headers or {}
        effect = self._planner.status(
            int(status) if status.isdigit() else 0,
            headers.get("Description", ""),
            pending=_count(headers.get("Nats-Pending-Messages")),
            batch=_count(message.subject.rpartition(".")[2]) or 0,
            now=time.monotonic(),
        )
        if effect.warning is not None:
            log.warning("region %s: %s", self.region, effect.warning)
        if effect.look_up:
            self._trouble = True
        if status != "100":
            self._wake.set()

    async def _look_up(self) -> None:
        """Find the consumer, and provision it when it is missing; return when it is there."""
        attempt = 0
        while True:
            problem = await self._try_look_up()
            # The library may swallow a cancellation that comes together with a reply.
            raise_if_cancelled()
            if problem is None:
                self._planner.reset()
                self._trouble = False
                return
            # The first look-up may find nothing: a region is provisioned by its first worker.
            if attempt:
                log.warning("region %s: %s", self.region, problem)
            await asyncio.sleep(LOOK_UP_BACKOFF.delay(attempt, random.random()))  # noqa: S311 - jitter
            attempt += 1

    async def _try_look_up(self) -> str | None:
        if not self._connection.is_connected:
            return "not connected to the broker"
        try:
            reply = await self._connection.request(self._info_subject, timeout=LOOK_UP_TIMEOUT)
            limits = read_limits(reply.data)
        except (nats.errors.Error, ValueError) as error:
            return f"cannot look up the request consumer: {error or type(error).__name__}"
        if limits is not None:
            self.limits = limits
            return None
        try:
            await self._provision(self.region)
        except ControlError as error:
            return str(error)
        return "the request consumer does not exist yet"


def read_limits(reply: bytes) -> ConsumerLimits | None:
    """Return the limits in a CONSUMER.INFO reply; None when stream or consumer does not exist.

    Raises ValueError for any other error, or a reply of another form.
    """
    try:
        members = json.loads(reply)
        error = members.get("error")
        if error is None:
            config = members["config"]
            ack_wait = float(config.get("ack_wait", DEFAULT_ACK_WAIT * 1e9)) / 1e9
            return ConsumerLimits(ack_wait, max(0, int(config.get("max_deliver", 0))))
        if error.get("code") == 404:
            return None
        raise ValueError(str(error.get("description", error)))
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"unexpected reply {reply[:80]!r}") from error


def in_cluster(connection: Client) -> bool:
    """Return whether the server is part of a cluster."""
    return bool(connection._server_info.get("cluster"))


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
