"""A cluster's creation and termination messages: work queues, one durable consumer a cluster.

See protocol.md, section 6.2.

A message is acknowledged when its handler has returned. By then, what it asks for is persisted.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from nvcf_agent.errors import StoreError
from nvcf_broker.connection import BrokerClient, describe_error
from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import NANOSECONDS, JetStream
from nvcf_broker.requests import raise_if_cancelled
from nvcf_proto.compute import cluster_consumer, work_stream_config
from nvcf_proto.errors import ContractError
from nvcf_proto.subjects import next_message_subject

_log = logging.getLogger(__name__)

BATCH = 32
# Handling a message takes milliseconds, and handling it twice changes nothing.
ACK_WAIT_SECONDS = 5.0
RETRY_SECONDS = 1.0
PULL_SECONDS = 30.0
HEARTBEAT_SECONDS = 5.0
SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
_IDLE_HEARTBEAT = "100"
_CONSUMER_GONE = "409"


@dataclass(frozen=True)
class Source:
    """One of the two work queues, filtered for a cluster."""

    stream: str
    stream_subjects: str
    filter_subject: str
    cluster: str

    @property
    def consumer(self) -> str:
        """Durable name, `{streamName}-{clusterID}`."""
        return cluster_consumer(self.stream, self.cluster)

    def consumer_config(self) -> dict[str, Any]:
        """JetStream settings of the consumer."""
        return {
            "durable_name": self.consumer,
            "filter_subject": self.filter_subject,
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT_SECONDS * NANOSECONDS),
            "max_deliver": -1,
        }


@dataclass
class Consumer:
    """Passes each message of a source to `handle`, one at a time.

    `handle` raises `ContractError` for an invalid message, which is dropped, and `StoreError` for one that
    has to be delivered again.
    """

    client: BrokerClient
    source: Source
    handle: Callable[[bytes], Awaitable[None]]
    replicas: int = 1
    _arrived: asyncio.Queue[Msg | None] = field(default_factory=asyncio.Queue)

    async def ensure(self) -> None:
        """Create stream and consumer if they are missing. Raises `BrokerError`."""
        source, jetstream = self.source, JetStream(self.client)
        config = work_stream_config(source.stream, source.stream_subjects, self.replicas)
        await jetstream.ensure_stream(config)
        await jetstream.create_consumer(source.stream, source.consumer_config())

    async def run(self) -> None:
        """Read messages until cancelled, across outages of the broker."""
        remove = self.client.on_reconnect(lambda: self._arrived.put_nowait(None))
        subscription = await self.client.subscribe(self.client.new_inbox(), cb=self._take)
        try:
            while True:
                raise_if_cancelled()
                try:
                    await self.ensure()
                    await self._read(subscription.subject)
                except (BrokerError, nats.errors.Error, OSError, TimeoutError, ValueError) as error:
                    _log.warning(
                        "cannot read %s: %s, trying again", self.source.stream, describe_error(error)
                    )
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            remove()
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()

    async def _take(self, message: Msg) -> None:
        self._arrived.put_nowait(message)

    async def _read(self, inbox: str) -> None:
        """Pull and handle messages until the broker is silent, reconnects, or the consumer is gone."""
        while True:
            await self._pull(inbox)
            left = BATCH
            while left > 0:
                async with asyncio.timeout(SILENCE_SECONDS):
                    message = await self._arrived.get()
                if message is None:
                    return
                status = (message.headers or {}).get("Status")
                if status is None:
                    await self._one(message)
                    left -= 1
                elif status == _CONSUMER_GONE:
                    return
                elif status != _IDLE_HEARTBEAT:
                    # The pull has expired, so send the next one.
                    left = 0

    async def _pull(self, inbox: str) -> None:
        ask = {
            "batch": BATCH,
            "expires": int(PULL_SECONDS * NANOSECONDS),
            "idle_heartbeat": int(HEARTBEAT_SECONDS * NANOSECONDS),
        }
        subject = next_message_subject(self.source.stream, self.source.consumer)
        await self.client.publish(subject, json.dumps(ask).encode(), reply=inbox)
        raise_if_cancelled()

    async def _one(self, message: Msg) -> None:
        try:
            await self.handle(message.data)
        except ContractError as error:
            _log.error("a message on %s is dropped: %s", message.subject, error)
            await message.term()
        except StoreError as error:
            _log.error("a message on %s is delivered again: %s", message.subject, error)
            await message.nak(delay=RETRY_SECONDS)
        else:
            await message.ack()
