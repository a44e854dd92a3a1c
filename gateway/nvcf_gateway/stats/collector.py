"""Scatter-gather: query the other replicas and sum the replies that arrive before the time-out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from nvcf_broker.connection import describe_error
from nvcf_broker.requests import raise_if_cancelled
from nvcf_gateway.stats.history import History
from nvcf_gateway.stats.snapshot import InvalidSnapshot, Snapshot
from nvcf_proto.subjects import STATISTICS_SUBJECT

_log = logging.getLogger(__name__)

TIMEOUT = 0.5
"""Seconds that other replicas have to reply."""
VERSIONS_PER_TURN = 50
"""Versions summed up before the event loop gets its turn."""


@dataclass(frozen=True)
class Collected:
    """Snapshot, and of how many replicas of those that are known."""

    snapshot: Snapshot
    replicas: int
    known: int


class SnapshotCollector:
    """Replies to the queries of other replicas, and queries them."""

    def __init__(
        self, client: Client, gateway_id: str, history: History, members: Callable[[], frozenset[str]]
    ) -> None:
        self._client = client
        self._gateway_id = gateway_id
        self._history = history
        self._members = members

    async def start(self) -> None:
        """Reply to other replicas from now on."""
        await self._client.subscribe(STATISTICS_SUBJECT, cb=self._on_query)

    async def collect(self, versions: Sequence[str]) -> Collected:
        """Return the snapshot of these versions. Replicas that do not reply in time are left out."""
        members = self._members()
        snapshot = await self._own(versions)
        others = members - {self._gateway_id}
        if not others or not self._client.is_connected:
            return Collected(snapshot, 1, len(members))
        count = 1
        for reply in await self._query(versions, len(others)):
            try:
                snapshot.add(Snapshot.from_json(reply.data))
                count += 1
            except InvalidSnapshot as error:
                _log.warning("%s", error)
        return Collected(snapshot, count, max(count, len(members)))

    async def _own(self, versions: Sequence[str]) -> Snapshot:
        now = time.time()
        snapshot = Snapshot(since=self._history.since)
        for number, version_id in enumerate(versions, 1):
            snapshot.add_history(self._history, version_id, now)
            if number % VERSIONS_PER_TURN == 0:
                await asyncio.sleep(0)
        return snapshot

    async def _query(self, versions: Sequence[str], others: int) -> list[Msg]:
        arrived: asyncio.Queue[Msg] = asyncio.Queue()

        async def on_reply(message: Msg) -> None:
            arrived.put_nowait(message)

        inbox = self._client.new_inbox()
        replies: list[Msg] = []
        try:
            subscription = await self._client.subscribe(inbox, cb=on_reply)
        except (nats.errors.Error, OSError) as error:
            _log.warning("cannot query the other gateways: %s", describe_error(error))
            return replies
        try:
            query = {"gatewayId": self._gateway_id, "versions": list(versions)}
            await self._client.publish(STATISTICS_SUBJECT, json.dumps(query).encode(), reply=inbox)
            raise_if_cancelled()
            async with asyncio.timeout(TIMEOUT):
                while len(replies) < others:
                    replies.append(await arrived.get())
        except TimeoutError:
            pass
        except (nats.errors.Error, OSError) as error:
            _log.warning("cannot query the other gateways: %s", describe_error(error))
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()
        raise_if_cancelled()
        return replies

    async def _on_query(self, message: Msg) -> None:
        try:
            query = json.loads(message.data)
            sender, versions = query["gatewayId"], [str(each) for each in query["versions"]]
        except (ValueError, TypeError, KeyError) as error:
            _log.warning("a query for statistics cannot be read: %s", error)
            return
        if sender != self._gateway_id and message.reply:
            await message.respond((await self._own(versions)).to_json())
