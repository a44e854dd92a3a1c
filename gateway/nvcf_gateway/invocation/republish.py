"""Publish waiting calls again when the broker comes back as another process.

What it acknowledged shortly before its machine failed may be gone. A call that is still in the queue is
refused there as a duplicate, so nothing is executed twice for that.
"""

from __future__ import annotations

import asyncio
import logging

from nvcf_broker.connection import BrokerClient
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.exchange.pending import Pending, PendingRequests

_log = logging.getLogger(__name__)

CONCURRENCY = 16


class Republisher:
    """Watches one broker connection for the calls that wait at this replica."""

    def __init__(self, client: BrokerClient, pending: PendingRequests, background: BackgroundTasks) -> None:
        self._client = client
        self._pending = pending
        self._background = background
        self._server = client.server_id
        client.on_reconnect(self._reconnected)

    def _reconnected(self) -> None:
        before, self._server = self._server, self._client.server_id
        waiting = [each for each in self._pending.all() if each.again is not None]
        if waiting and before != self._server:
            self._background.spawn(self._publish(waiting), "publish waiting calls again")

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
