"""Dead letters: requests that the queue no longer delivers.

The broker publishes an advisory, and one gateway handles it. If workers only handed the request back, it is
queued again. If it has killed the workers that started it, its caller gets a 500, and the message goes. A
sweep finds what was missed, because no gateway ran, its connection was lost or the store did not work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import nats.errors
from nats.aio.msg import Msg

from nvcf_broker.connection import describe_error
from nvcf_broker.errors import BrokerError
from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.results.hand_backs import HandBacks, again
from nvcf_proto import headers as names
from nvcf_proto.errors import InvalidId
from nvcf_proto.ids import parse_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.problem import Problem
from nvcf_proto.streams import DEFAULT_MAX_DELIVER
from nvcf_proto.subjects import fallback_subject, request_of, request_stream

_log = logging.getLogger(__name__)

MAX_DELIVERIES_SUBJECT = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*.*"
"""Published when a message is not acknowledged after its last delivery (NATS, JetStream advisories)."""
QUEUE_GROUP = "nvcf-gateways"
SWEEP_SECONDS = 300.0
SOON_SECONDS = 20.0
"""Before the sweep after an advisory may have been missed: most likely there is a store again by then."""
SETTLE_SECONDS = 1.0
"""An acknowledged message is gone everywhere by then."""
REPLY_TIMEOUT = 2.0


class DeadLetter(NamedTuple):
    """A message that is no longer delivered. `deliveries`: how often it was, 0 if that is not known."""

    region: str
    version_id: str
    sequence: int
    deliveries: int


def read_advisory(data: bytes) -> DeadLetter | None:
    """Return the message that an advisory names; None for other streams than those of requests."""
    try:
        members = json.loads(data)
        # The stream is `rq_R_V`; regions may contain `_`.
        rest, _, version = str(members["stream"]).rpartition("_")
        prefix, _, region = rest.partition("_")
        version_id = parse_id(version, "version id")
        if prefix != "rq":
            return None
        return DeadLetter(region, version_id, int(members["stream_seq"]), int(members.get("deliveries", 0)))
    except (ValueError, KeyError, TypeError, InvalidId):
        return None


def too_many_deliveries(request_id: str, deliveries: int) -> bytes:
    """Return the response as an inline reply (protocol.md, section 2.12)."""
    detail = f"Request {request_id} was delivered {deliveries} times and never answered."
    problem = Problem("Too Many Deliveries", 500, detail)
    message = nvcf_pb2.InlineResponse(body=problem.to_json(), httpStatusCode=500, endOfResponse=True)
    message.headers.add(key="content-type", value=names.PROBLEM_JSON)
    return message.SerializeToString()


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetters:
    """Ends dead letters. `versions` are those whose queues are swept, soon if `missed` is set."""

    requests: ReplyInbox
    queue: RequestQueue
    background: BackgroundTasks
    regions: Collection[str]
    versions: Callable[[], Iterable[str]]
    hand_backs: HandBacks
    missed: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_advisory(self, message: Msg) -> None:
        """Handle one advisory."""
        found = read_advisory(message.data)
        if found is not None and found.region in self.regions:
            self.background.spawn(self.end(found), f"end message {found.sequence} of {found.version_id}")

    async def sweep(self) -> None:
        """Search the queues of the own region after the start, when `missed` and now and then; never end."""
        self.missed.set()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS * random.uniform(0.5, 1.5)):  # noqa: S311
                    await self.missed.wait()
            # Replicas that started together must not search at the same time.
            await asyncio.sleep(SOON_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
            self.missed.clear()
            for version_id in tuple(self.versions()):
                await self.sweep_one(version_id)

    async def sweep_one(self, version_id: str) -> None:
        """End the dead letters of one queue."""
        ended = -1
        try:
            while (sequence := await self.queue.stuck(version_id)) is not None:
                if sequence == ended:
                    # For example the stream denies it: the other queues must not wait for that.
                    _log.error("message %d of %s cannot be removed from its queue", sequence, version_id)
                    return
                await asyncio.sleep(SETTLE_SECONDS)
                if await self.queue.stuck(version_id) != sequence:
                    return
                await self._end(DeadLetter(self.queue.region, version_id, sequence, 0))
                ended = sequence
        except BrokerError as error:
            _log.warning("%s; the queue of %s is looked at later", error, version_id)
            self.missed.set()

    async def end(self, found: DeadLetter) -> None:
        """Answer the caller and remove the message."""
        try:
            await self._end(found)
        except BrokerError as error:
            _log.warning("%s; a sweep will find the message", error)
            self.missed.set()

    async def _end(self, found: DeadLetter) -> None:
        message = await self.queue.stored(found.version_id, found.sequence, found.region)
        if message is None:
            return None
        deliveries = found.deliveries or DEFAULT_MAX_DELIVER
        stream = request_stream(found.region, found.version_id)
        attempts = self.hand_backs.attempts(stream, message, deliveries)
        try:
            request_id = parse_id(request_of(message.subject), "request id")
        except InvalidId as error:
            _log.warning("a message of version %s is not a request: %s", found.version_id, error)
        else:
            extra = {"request_id": request_id}
            requeued = again(message, attempts, deliveries)
            if requeued is not None:
                headers, delay = requeued
                _log.info("request queued again: its workers handed it back", extra=extra)
                await asyncio.sleep(delay)
                if await self.queue.stored(found.version_id, found.sequence, found.region) is None:
                    return None
                return await self.queue.queue_again(found.version_id, message, headers, found.region)
            _log.error("request given up: %d attempts ended without a response", attempts, extra=extra)
            await self._answer(found, request_id, attempts, message.headers.get(names.REPLY_SUBJECT))
        return await self.queue.remove(found.version_id, "", found.sequence, found.region)

    async def _answer(
        self, found: DeadLetter, request_id: str, attempts: int, reply_subject: str | None
    ) -> None:
        response = too_many_deliveries(request_id, attempts)
        if reply_subject is not None and await self._deliver(reply_subject, response):
            return
        # The gateway of the call is gone, or its caller has left: the response is stored for a later poll.
        fallback = await self._request(fallback_subject(found.version_id), request_id.encode())
        subject = None if fallback is None else (fallback.headers or {}).get(names.REPLY_SUBJECT)
        if subject:
            await self._deliver(subject, response)

    async def _deliver(self, subject: str, response: bytes) -> bool:
        """Return whether a gateway took the response."""
        reply = await self._request(subject, response)
        return reply is not None and not (reply.headers or {}).get(names.REPLY_STATUS)

    async def _request(self, subject: str, payload: bytes) -> Msg | None:
        try:
            return await self.requests.request(subject, payload, timeout=REPLY_TIMEOUT)
        except (nats.errors.Error, TimeoutError) as error:
            _log.debug("%s: %s", subject, describe_error(error))
            return None
