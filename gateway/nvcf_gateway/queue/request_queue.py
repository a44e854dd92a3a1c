"""The durable queue: streams made on first use, requests published and removed (protocol.md, section 2)."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Literal

from nvcf_broker.connection import BrokerClient
from nvcf_broker.errors import BrokerError, BrokerUnavailableError, JetStreamError, NoListenerError
from nvcf_broker.jetstream import JetStream, Requester, StoredMessage
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import NotStored, QueueFull
from nvcf_gateway.http.durations import publish_delay
from nvcf_gateway.queue.regional_buckets import placement_tag
from nvcf_proto import streams, subjects

_log = logging.getLogger(__name__)

ENSURE_SECONDS = 30.0
"""Longest time for the creation of a version's stream and consumer."""
# Error codes that say that the message is gone already.
_NOT_THERE = (400, 404, 500)

PublishFailure = Literal["stored", "full", "retry"]
Place = Literal["queued", "in flight"]
"""Whether a request waits in the queue, or a worker has it."""


def classify_publish_error(description: str) -> PublishFailure:
    """Classify a refused publish.

    The same subject already stored is a repeated publish and counts as success; a full stream is the
    caller's 429; anything else is tried again. Source of the texts: nats-server's stream store errors.
    """
    text = description.lower()
    if "maximum messages per subject exceeded" in text:
        return "stored"
    if "maximum messages exceeded" in text or "maximum bytes exceeded" in text or "resource limits" in text:
        return "full"
    return "retry"


class RequestQueue:
    """The request streams, as this replica uses them."""

    def __init__(
        self,
        client: BrokerClient,
        requests: Requester,
        config: GatewayConfig,
        depth: Callable[[str], int] = lambda version_id: streams.MAX_QUEUED_REQUESTS,
        refusal: Callable[[], str | None] = lambda: None,
        admit: Callable[[str, int], Awaitable[None]] | None = None,
    ) -> None:
        self._admit = admit
        self._refusal = refusal
        self._depth = depth
        self._client = client
        self._jetstream = JetStream(requests)
        self._config = config
        self._ensured: set[tuple[str, str]] = set()
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        # Not for secrets: it only spreads retries in time.
        self._random = random.Random()  # noqa: S311

    @property
    def region(self) -> str:
        """The gateway's own region."""
        return self._config.region

    async def ensure(self, version_id: str, region: str | None = None, *, again: bool = False) -> None:
        """Create the version's stream and consumer if they are missing. Raises BrokerError."""
        region = region or self.region
        key = (region, version_id)
        if key in self._ensured and not again:
            return
        async with self._locks.setdefault(key, asyncio.Lock()):
            await self._create_stream(region, version_id)
            await self._create_consumer(region, version_id)
            self._ensured.add(key)

    async def _create_stream(self, region: str, version_id: str) -> None:
        config = streams.request_stream_config(
            region,
            version_id,
            replicas=self._config.replicas,
            max_queued=self._depth(version_id),
            placement_tag=placement_tag(self._client, self._config, region),
        )
        await self._jetstream.ensure_stream(config)

    async def _create_consumer(self, region: str, version_id: str) -> None:
        stream = subjects.request_stream(region, version_id)
        config = streams.request_consumer_config(region, version_id, ack_wait_seconds=self._config.ack_wait)
        await self._jetstream.create_consumer(stream, config)

    async def delete(self, version_id: str) -> None:
        """Delete the version's streams in all regions, queued requests included. Raises BrokerError."""
        for region in self._config.regions:
            self._ensured.discard((region, version_id))
            await self._jetstream.delete_stream(subjects.request_stream(region, version_id))

    async def publish(
        self,
        version_id: str,
        request_id: str,
        payload: bytes,
        headers: dict[str, str],
        *,
        deadline: float | None = None,
        answered: Callable[[], bool] = lambda: False,
    ) -> int | None:
        """Store a request and return its stream sequence, or None if it was stored before.

        `answered` tells whether a worker has answered it: then only the acknowledgement was lost, and
        storing it again would run it again. At `deadline` (loop time) no further attempt is made. Raises
        QuotaExceeded, QueueFull; NotStored if the broker has refused each attempt; BrokerError if one may
        have succeeded. While the store is known not to work, no attempt is made.
        """
        if self._admit is not None:
            await self._admit(version_id, len(payload))
        loop = asyncio.get_running_loop()
        until = math.inf if deadline is None else deadline
        attempt = 0
        failure: type[BrokerError] = NotStored
        cause: Exception | None = None
        while (left := until - loop.time()) > 0:
            if (reason := self._refusal()) is not None:
                raise failure(reason) from cause
            before, failure = failure, BrokerUnavailableError
            try:
                return await self._publish_once(version_id, request_id, payload, headers, left)
            except QueueFull:
                raise
            except NotStored as error:
                failure, cause = before, error
            except BrokerError as error:
                cause = error
            attempt += 1
            delay = publish_delay(attempt, self._random.random())
            if delay is None:
                raise failure(f"the queue did not take the request: {cause}") from cause
            extra = {"request_id": request_id}
            _log.warning("publish failed, trying again in %.1f s: %s", delay, cause, extra=extra)
            left = until - loop.time()
            await asyncio.sleep(min(delay, left))
            if answered():
                return None
            if delay >= left:
                # A timer may ring a little early. An attempt in what is left then would only end unknown.
                break
        raise failure("the queue did not take the request within the poll time") from cause

    async def _publish_once(
        self, version_id: str, request_id: str, payload: bytes, headers: dict[str, str], seconds: float
    ) -> int | None:
        region = self._config.region
        subject = subjects.request_subject(region, version_id, request_id)
        # The second attempt follows if no stream listens, because it was deleted meanwhile.
        for again in (False, True):
            if again or (region, version_id) not in self._ensured:
                try:
                    async with asyncio.timeout(min(seconds, ENSURE_SECONDS)):
                        await self.ensure(version_id, again=again)
                except (BrokerError, TimeoutError) as error:
                    reason = str(error) or "the queue of this version could not be created in time"
                    raise NotStored(reason) from error
            try:
                return await self._jetstream.publish(subject, payload, headers, timeout=seconds)
            except NoListenerError:
                continue
            except JetStreamError as error:
                match classify_publish_error(error.description):
                    case "stored":
                        return None
                    case "full":
                        raise QueueFull("the queue of this version is full") from None
                    case _:
                        raise NotStored(error.description) from error
        raise NotStored("no stream of the broker takes requests of this version")

    async def request(self, version_id: str, request_id: str, region: str) -> StoredMessage | None:
        """Return a request, waiting or in flight; None if it is not in the queue. Raises BrokerError."""
        stream = subjects.request_stream(region, version_id)
        subject = subjects.request_subject(region, version_id, request_id)
        # The first one twice: meanwhile the message may have been queued again.
        for each in (subject, subjects.requeued_subject(subject), subject):
            found = await self._jetstream.message(stream, last_by_subj=each)
            if found is not None:
                return found
        return None

    async def place(self, version_id: str, request_id: str, region: str) -> Place | None:
        """Find out where a request is; None if it is not in the queue at all. Raises BrokerError."""
        stream = subjects.request_stream(region, version_id)
        found = await self.request(version_id, request_id, region)
        if found is None:
            return None
        consumer = await self._jetstream.consumer_info(stream, subjects.request_consumer(region, version_id))
        return "in flight" if consumer is not None and found.sequence <= consumer.delivered else "queued"

    async def position(self, version_id: str, request_id: str, region: str) -> int | None:
        """Return about how many requests are delivered before it, itself included; 0: a worker has it.

        None if it is not in the queue at all. Raises BrokerError.
        """
        found = await self.request(version_id, request_id, region)
        if found is None:
            return None
        stream = subjects.request_stream(region, version_id)
        consumer = await self._jetstream.consumer_info(stream, subjects.request_consumer(region, version_id))
        if consumer is None:
            return 1
        # Requests that were cancelled leave gaps in the sequence.
        return max(0, min(found.sequence - consumer.delivered, consumer.pending))

    async def find(self, version_id: str, request_id: str) -> StoredMessage | None:
        """Return a request that is queued or in flight in any region, the own first. Raises BrokerError."""
        for region in self._config.own_region_first:
            found = await self.request(version_id, request_id, region)
            if found is not None:
                return found
        return None

    async def remove(
        self, version_id: str, request_id: str, sequence: int | None, region: str | None = None
    ) -> None:
        """Remove a request from the queue, waiting or in flight. Raises BrokerError."""
        region = region or self.region
        stream = subjects.request_stream(region, version_id)
        try:
            if sequence is not None:
                return await self._jetstream.delete_message(stream, sequence)
        except JetStreamError as error:
            if error.code not in _NOT_THERE:
                raise
        if not request_id:
            return None
        # Its sequence is another one if it was queued again.
        subject = subjects.request_subject(region, version_id, request_id)
        try:
            await self._jetstream.purge(stream, subject)
            await self._jetstream.purge(stream, subjects.requeued_subject(subject))
        except JetStreamError as error:
            if error.code not in _NOT_THERE:
                raise

    async def queue_again(
        self, version_id: str, message: StoredMessage, headers: dict[str, str], region: str
    ) -> None:
        """Put a message that is no longer delivered at the end of its queue. Raises BrokerError.

        The copy is stored before the message is removed, so that it is never in neither place.
        """
        try:
            await self._jetstream.publish(
                subjects.requeued_subject(message.subject), message.data, {**message.headers, **headers}
            )
        except JetStreamError as error:
            if classify_publish_error(error.description) != "stored":
                raise
        await self.remove(version_id, "", message.sequence, region)

    async def hand_back(self, version_id: str, request_id: str) -> bool:
        """Let the broker deliver a request again that it has delivered to nobody; return whether it had.

        For the caller to know that no worker has it. Raises BrokerError.
        """
        stream = subjects.request_stream(self.region, version_id)
        name = subjects.request_consumer(self.region, version_id)
        found = await self.request(version_id, request_id, self.region)
        consumer = await self._jetstream.consumer_info(stream, name)
        if found is None or consumer is None or found.sequence > consumer.delivered:
            return False
        subject = subjects.ack_subject(stream, name, found.sequence, consumer.deliveries)
        await self._client.publish(subject, b"-NAK")
        return True

    async def stored(self, version_id: str, sequence: int, region: str) -> StoredMessage | None:
        """Return one message; None if it is not there (any more). Raises BrokerError."""
        return await self._jetstream.message(subjects.request_stream(region, version_id), seq=sequence)

    async def stuck(self, version_id: str) -> int | None:
        """Return the sequence of a dead letter of the own region, None without one. Raises BrokerError.

        Such a message has been delivered and is not awaited by the consumer any more, and yet it is there: an
        acknowledged one would be removed, which may take a moment in a cluster.
        """
        stream = subjects.request_stream(self.region, version_id)
        queue = await self._jetstream.stream_info(stream)
        if queue is None or not queue.messages:
            return None
        consumer = await self._jetstream.consumer_info(
            stream, subjects.request_consumer(self.region, version_id)
        )
        if consumer is None:
            return None
        done_with = consumer.ack_floor if consumer.ack_pending else consumer.delivered
        return queue.first_sequence if queue.first_sequence <= done_with else None

    async def cancel(self, version_id: str, request_id: str) -> None:
        """Cancel a request: all workers of the version learn that nobody waits for it."""
        await self._client.publish(subjects.cancel_subject(version_id), request_id.encode())
