"""Publish waiting calls again when the broker comes back as another process.

What it acknowledged shortly before its machine failed may be gone. A call that is still in the queue is
refused there as a duplicate, so nothing is executed twice for that.

A broker that ends in order also remembers deliveries that it has made to closing connections, and waits for
their acknowledgements. What no worker has is handed back in their place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import nats.errors

from nvcf_broker.connection import BrokerClient
from nvcf_broker.errors import BrokerError
from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.exchange.pending import Pending, PendingRequests
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_proto.subjects import version_polling_subject

_log = logging.getLogger(__name__)

CONCURRENCY = 16
QUESTIONS = 2
"""How often all workers must have been silent about a request before it is handed back."""
ROUNDS = 4
"""Some workers may still be on their way back in the first ones."""
QUESTIONS_AT_ONCE = 256
QUESTION_SECONDS = 1.5
ANSWER_SECONDS = 0.5

Answering = Callable[[set[str]], Awaitable[set[str]]]


async def all_of(versions: set[str]) -> set[str]:
    """Return all versions: without `--wide-inbox` all workers are of this project."""
    return versions


async def none_of(_versions: set[str]) -> set[str]:
    """Return none: there may be workers of any make."""
    return set()


class Republisher:
    """Watches one broker connection for the calls that wait at this replica.

    answering: returns those of some versions whose workers all answer whether they have a request [ext].
    """

    def __init__(
        self,
        client: BrokerClient,
        requests: ReplyInbox,
        queue: RequestQueue,
        pending: PendingRequests,
        background: BackgroundTasks,
        answering: Answering,
    ) -> None:
        self._client = client
        self._requests = requests
        self._queue = queue
        self._pending = pending
        self._background = background
        self._answering = answering
        self._server = client.server_id
        client.on_reconnect(self._reconnected)

    def _reconnected(self) -> None:
        before, self._server = self._server, self._client.server_id
        if before == self._server:
            return
        waiting = [each for each in self._pending.all() if each.again is not None]
        if waiting:
            self._background.spawn(self._publish(waiting), "publish waiting calls again")
        if len(self._pending):
            # All that were there before: what comes from now on is delivered by this broker.
            self._background.spawn(self._hand_back(self._pending.all()), "hand back what no worker has")

    async def _hand_back(self, waiting: list[Pending]) -> None:
        """Hand back the requests that no worker has, once workers have had the time to reconnect."""
        silent = {each.request_id: 0 for each in waiting}
        turns = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        for _ in range(ROUNDS):
            await asyncio.sleep(QUESTION_SECONDS)
            waiting = [each for each in waiting if each.open]
            if not waiting:
                return
            versions = await self._answering({each.version_id for each in waiting})
            asked = [each for each in waiting if each.version_id in versions]
            found = await asyncio.gather(*(self._is_held(each, turns) for each in asked))
            held = {each.request_id for each, is_held in zip(asked, found, strict=True) if is_held}
            for each in asked:
                silent[each.request_id] += 1
                if each.request_id not in held and silent[each.request_id] == QUESTIONS and each.open:
                    await self._return(each)
            waiting = [
                each
                for each in waiting
                if each.request_id not in held and silent[each.request_id] < QUESTIONS
            ]

    async def _return(self, pending: Pending) -> None:
        try:
            if await self._queue.hand_back(pending.version_id, pending.request_id):
                _log.info("handed back: no worker has it", extra={"request_id": pending.request_id})
        except BrokerError as error:
            _log.warning("not handed back: %s", error, extra={"request_id": pending.request_id})

    async def _is_held(self, pending: Pending, turns: asyncio.Semaphore) -> bool:
        async with turns:
            try:
                subject = version_polling_subject(pending.version_id, pending.request_id)
                await self._requests.request(subject, b"", timeout=ANSWER_SECONDS)
            except (nats.errors.Error, TimeoutError):
                return False
            return True

    async def _publish(self, waiting: list[Pending]) -> None:
        _log.info("the broker is another process: %d waiting calls are published again", len(waiting))
        turns = asyncio.Semaphore(CONCURRENCY)

        async def one(pending: Pending) -> None:
            async with turns:
                if pending.again is None or not pending.open:
                    return
                pending.republished = True
                try:
                    await pending.again()
                except HttpProblem as problem:
                    _log.warning("not published again: %s", problem, extra={"request_id": pending.request_id})

        await asyncio.gather(*(one(each) for each in waiting))
