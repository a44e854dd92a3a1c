"""A cluster's creation and termination messages: one durable consumer on each of two work queues.

See protocol.md, section 6.2. The consumers are all that the agent uses of the broker.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from nvcf_agent.errors import StoreError
from nvcf_broker.connection import BrokerClient, describe_error
from nvcf_broker.requests import raise_if_cancelled
from nvcf_proto.errors import ContractError
from nvcf_proto.icms.names import FETCH_MESSAGES, cluster_consumer, consumer_config, create_consumer_subject
from nvcf_proto.subjects import next_message_subject

_log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
PULL_SECONDS = 30.0
HEARTBEAT_SECONDS = 5.0
SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
_CREATE_SECONDS = 5.0
_OLD_SECONDS = 10.0
"""Less than any order lasts."""
_IDLE_HEARTBEAT = "100"
_PULL_IS_OVER = ("404", "408")


class ConsumerGone(Exception):
    """The consumer does not answer: it is missing, or its stream is."""


class Delivery:
    """One delivered message. A lost answer only means that the message comes again."""

    def __init__(self, message: Msg, age: float | None = None) -> None:
        self._message = message
        self.age = age
        """For how many seconds the broker has had it; None if that is unknown."""

    @property
    def subject(self) -> str:
        """Subject of the message."""
        return self._message.subject

    @property
    def body(self) -> bytes:
        """Content of the message."""
        return self._message.data

    async def ack(self) -> None:
        """Remove the message from the queue."""
        await self._answer(self._message.ack)

    async def again(self, delay: float) -> None:
        """Have the message delivered again in `delay` seconds."""
        await self._answer(lambda: self._message.nak(delay=delay))

    async def refuse(self) -> None:
        """Remove a message that cannot be handled."""
        await self._answer(self._message.term)

    async def in_progress(self) -> None:
        """Start the message's ack wait anew."""
        await self._answer(self._message.in_progress)

    async def _answer(self, answer: Callable[[], Awaitable[None]]) -> None:
        with contextlib.suppress(nats.errors.Error, OSError):
            await answer()
        raise_if_cancelled()


class BrokerClock:
    """Tells how old messages are by the broker's own clock, which may differ from that of this machine."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._told: tuple[float, float] | None = None

    def told(self, time_stamp: object) -> None:
        """Note what time it is at the broker, as its answers have it. Raises ValueError."""
        if isinstance(time_stamp, str):
            self._told = datetime.fromisoformat(time_stamp).timestamp(), self._monotonic()

    @property
    def is_stale(self) -> bool:
        """Return whether the broker told its time long ago."""
        return self._told is None or self._monotonic() - self._told[1] > _OLD_SECONDS

    def age(self, message: Msg) -> float | None:
        """Return for how many seconds the broker has had a message; None if that is unknown."""
        try:
            stored_at = message.metadata.timestamp.timestamp()
        except (nats.errors.Error, ValueError):
            return None
        if self._told is None:
            return None
        return max(0.0, self._told[0] + self._monotonic() - self._told[1] - stored_at)


# One fetch and what may come with it: heartbeats, the end of an earlier fetch, the note of a reconnect.
MOST_ARRIVED = 16 * FETCH_MESSAGES
MOST_AT_ONCE = 4 * FETCH_MESSAGES
"""Messages that are handled at the same time. More are asked for when there is room for a whole fetch."""


@dataclass
class Consumer:
    """Passes each message of one of the streams to `handle`, up to `MOST_AT_ONCE` at the same time.

    Calls begin in the order of the messages; `handle` keeps what is of one request in order. It answers the
    delivery, then or later. It raises `ContractError` for a message that nobody can read, which is removed,
    and `StoreError` for one that has to come again. While `open` is not set, no messages are asked for.
    """

    client: BrokerClient
    stream: str
    cluster_id: str
    handle: Callable[[Delivery], Awaitable[None]]
    open: asyncio.Event
    _arrived: asyncio.Queue[Msg | None] = field(default_factory=lambda: asyncio.Queue(MOST_ARRIVED))
    _lost: bool = False
    _clock: BrokerClock = field(default_factory=BrokerClock)

    async def ensure(self) -> None:
        """Create the consumer. One that exists already is as good: the control plane makes it, too."""
        body: dict[str, Any] = {
            "stream_name": self.stream,
            "config": consumer_config(self.stream, self.cluster_id),
            "action": "",
        }
        subject = create_consumer_subject(self.stream, self.cluster_id)
        try:
            reply = await self.client.request(subject, json.dumps(body).encode(), timeout=_CREATE_SECONDS)
            answer = json.loads(reply.data)
            error = answer.get("error")
            self._clock.told(answer.get("ts"))
        except (nats.errors.Error, OSError, TimeoutError, ValueError, AttributeError) as failure:
            error = {"description": describe_error(failure)}
        if error:
            _log.info("consumer of %s: %s", self.stream, error.get("description"))

    async def run(self) -> None:
        """Read messages until cancelled, across outages of the broker and losses of the consumer."""
        remove = self.client.on_reconnect(lambda: self._put(None))
        subscription = await self.client.subscribe(self.client.new_inbox(), cb=self._take)
        try:
            while True:
                raise_if_cancelled()
                try:
                    await self.ensure()
                    await self._read(subscription.subject)
                except (ConsumerGone, nats.errors.Error, OSError, TimeoutError, ValueError) as error:
                    _log.warning("cannot read %s: %s, trying again", self.stream, describe_error(error))
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            remove()
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()

    async def _take(self, message: Msg) -> None:
        self._put(message)

    def _put(self, message: Msg | None) -> None:
        # Nobody who keeps to the protocol fills it. What is dropped is delivered again after its ack wait.
        with contextlib.suppress(asyncio.QueueFull):
            self._arrived.put_nowait(message)

    async def _read(self, inbox: str) -> None:
        """Pull and handle messages until the connection was lost or the consumer is gone."""
        self._lost, failure = False, None
        async with asyncio.TaskGroup() as handling:
            handled: set[asyncio.Task[None]] = set()
            while failure is None and not self._lost:
                while len(handled) > MOST_AT_ONCE - FETCH_MESSAGES:
                    await asyncio.wait(handled, return_when=asyncio.FIRST_COMPLETED)
                await self.open.wait()
                await self._pull(inbox)
                # What is raised inside would come out as a group.
                failure = await self._fetched(handling, handled)
        if failure is not None:
            raise failure

    async def _fetched(
        self, handling: asyncio.TaskGroup, handled: set[asyncio.Task[None]]
    ) -> Exception | None:
        """Begin to handle the messages of one fetch. Return why nothing more comes, if that is a failure."""
        left = FETCH_MESSAGES
        while left > 0:
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    message = await self._arrived.get()
            except TimeoutError as error:
                return error
            if message is None:
                self._lost = True
                return None
            headers = message.headers or {}
            status = headers.get("Status")
            if status is None:
                task = handling.create_task(self._one(message))
                handled.add(task)
                task.add_done_callback(handled.discard)
                left -= 1
            elif status in _PULL_IS_OVER:
                left = 0
            elif status != _IDLE_HEARTBEAT:
                return ConsumerGone(headers.get("Description") or f"status {status}")
        return None

    async def _pull(self, inbox: str) -> None:
        ask = {
            "batch": FETCH_MESSAGES,
            "expires": int(PULL_SECONDS * 1e9),
            "idle_heartbeat": int(HEARTBEAT_SECONDS * 1e9),
        }
        subject = next_message_subject(self.stream, cluster_consumer(self.stream, self.cluster_id))
        await self.client.publish(subject, json.dumps(ask).encode(), reply=inbox)
        raise_if_cancelled()

    async def _age(self, message: Msg) -> float | None:
        age = self._clock.age(message)
        if age is not None and age > _OLD_SECONDS and self._clock.is_stale:
            # It may expire for its age, so the broker is asked again: its clock may have been set.
            await self.ensure()
            age = self._clock.age(message)
        return age

    async def _one(self, message: Msg) -> None:
        delivery = Delivery(message, await self._age(message))
        try:
            await self.handle(delivery)
        except ContractError as error:
            _log.error("a message on %s is dropped: %s", message.subject, error)
            await delivery.refuse()
        except StoreError as error:
            _log.error("a message on %s is delivered again: %s", message.subject, error)
            await delivery.again(RETRY_SECONDS)
