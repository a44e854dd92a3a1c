"""Requests that the queue does not deliver any more: their callers are answered, and the messages go.

A worker answers the last delivery that a request has. One that is killed over it answers nothing, and then
the message would stay in its stream and its caller wait to the end. The broker says so in an advisory, of
which one gateway takes care; a sweep finds what was missed while no gateway ran.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import nats.errors
from nats.aio.msg import Msg

from nvcf_broker.connection import describe_error
from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import StoredMessage
from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_proto import headers as names
from nvcf_proto.errors import InvalidId
from nvcf_proto.ids import parse_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.problem import Problem
from nvcf_proto.subjects import fallback_subject

_log = logging.getLogger(__name__)

MAX_DELIVERIES_SUBJECT = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*.*"
"""Published when a message is not acknowledged after its last delivery (NATS, JetStream advisories)."""
QUEUE_GROUP = "nvcf-gateways"
SWEEP_SECONDS = 300.0
SETTLE_SECONDS = 1.0
"""An acknowledged message is gone everywhere by then."""
ANSWER_TIMEOUT = 2.0


class Exhausted(NamedTuple):
    """A message that is not delivered any more. `deliveries`: how often it was, 0 where that is not known."""

    region: str
    version_id: str
    sequence: int
    deliveries: int


class Stored(NamedTuple):
    """What is needed of the message itself."""

    request_id: str
    reply_subject: str | None


def read_advisory(data: bytes) -> Exhausted | None:
    """The message an advisory speaks of; None for other streams than those of requests."""
    try:
        members = json.loads(data)
        prefix, region, version_id = _stream_parts(str(members["stream"]))
        if prefix != "rq":
            return None
        return Exhausted(region, version_id, int(members["stream_seq"]), int(members.get("deliveries", 0)))
    except (ValueError, KeyError, TypeError, InvalidId):
        return None


def _stream_parts(stream: str) -> tuple[str, str, str]:
    """`rq_R_V` in parts; regions may contain `_`. Raises ValueError and InvalidId."""
    rest, _, version = stream.rpartition("_")
    prefix, _, region = rest.partition("_")
    return prefix, region, parse_id(version, "version id")


def read_stored(message: StoredMessage) -> Stored:
    """Read a message of a request stream. Raises InvalidId."""
    request_id = parse_id(message.subject.rpartition(".")[2], "request id")
    return Stored(request_id, message.headers.get(names.REPLY_SUBJECT))


def too_many_deliveries(request_id: str, deliveries: int) -> bytes:
    """The answer as an inline reply (protocol.md, section 2.12)."""
    times = f"{deliveries} times" if deliveries else "as often as the queue allows"
    problem = Problem(
        "Too Many Deliveries", 500, f"Request {request_id} was delivered {times} and never answered."
    )
    message = nvcf_pb2.InlineResponse(body=problem.to_json(), httpStatusCode=500, endOfResponse=True)
    message.headers.add(key="content-type", value=names.PROBLEM_JSON)
    return message.SerializeToString()


class ExhaustedRequests:
    """Takes care of them. `versions` are those whose queues are swept."""

    def __init__(
        self,
        requests: ReplyInbox,
        queue: RequestQueue,
        owner: BackgroundTasks,
        regions: Collection[str],
        versions: Callable[[], Iterable[str]],
    ) -> None:
        self._requests = requests
        self._queue = queue
        self._owner = owner
        self._regions = regions
        self._versions = versions

    async def advised(self, message: Msg) -> None:
        """An advisory came."""
        found = read_advisory(message.data)
        if found is not None and found.region in self._regions:
            self._owner.spawn(self.end(found), f"end message {found.sequence} of {found.version_id}")

    async def sweep(self) -> None:
        """Look through the queues of the gateway's own region now and then, until cancelled."""
        while True:
            # Replicas that started together shall not look at once.
            await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
            for version_id in tuple(self._versions()):
                await self.sweep_one(version_id)

    async def sweep_one(self, version_id: str) -> None:
        """End what one queue keeps and does not deliver."""
        ended = -1
        try:
            while (sequence := await self._queue.stuck(version_id)) is not None:
                if sequence == ended:
                    # E.g. of a stream that denies it: the other queues shall not wait for that.
                    _log.error("message %d of %s cannot be removed from its queue", sequence, version_id)
                    return
                await asyncio.sleep(SETTLE_SECONDS)
                if await self._queue.stuck(version_id) != sequence:
                    return
                await self._end(Exhausted(self._queue.region, version_id, sequence, 0))
                ended = sequence
        except BrokerError as error:
            _log.warning("%s; the queue of %s is looked at later", error, version_id)

    async def end(self, found: Exhausted) -> None:
        """Answer the caller and remove the message."""
        try:
            await self._end(found)
        except BrokerError as error:
            _log.warning("%s; a sweep will find the message", error)

    async def _end(self, found: Exhausted) -> None:
        message = await self._queue.stored(found.version_id, found.sequence, found.region)
        if message is None:
            return
        try:
            stored = read_stored(message)
        except InvalidId as error:
            _log.warning("a message of version %s is no request: %s", found.version_id, error)
        else:
            _log.error(
                "request given up: its deliveries are used up", extra={"request_id": stored.request_id}
            )
            await self._answer(found, stored)
        await self._queue.remove(found.version_id, "", found.sequence, found.region)

    async def _answer(self, found: Exhausted, stored: Stored) -> None:
        answer = too_many_deliveries(stored.request_id, found.deliveries)
        if stored.reply_subject is not None and await self._tell(stored.reply_subject, answer):
            return
        # The gateway of the call is gone, or its caller has left: whoever comes back shall find the answer.
        door = await self._request(fallback_subject(found.version_id), stored.request_id.encode())
        subject = None if door is None or not door.headers else door.headers.get(names.REPLY_SUBJECT)
        if subject:
            await self._tell(subject, answer)

    async def _tell(self, subject: str, answer: bytes) -> bool:
        """Whether somebody took the answer."""
        reply = await self._request(subject, answer)
        return reply is not None and not (reply.headers or {}).get(names.REPLY_STATUS)

    async def _request(self, subject: str, payload: bytes) -> Msg | None:
        try:
            return await self._requests.request(subject, payload, timeout=ANSWER_TIMEOUT)
        except (nats.errors.Error, TimeoutError) as error:
            _log.debug("%s: %s", subject, describe_error(error))
            return None
