"""Ends broker connections of workers and agents that have lost their right, with the system account."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import nats.errors

from nvcf_broker.connection import BrokerClient, describe_error
from nvcf_gateway.access.agent_identity import AgentAccess
from nvcf_gateway.access.worker_access import NOT_DEPLOYED, WorkerAccess
from nvcf_proto.icms.names import AGENT_BROKER_ACCOUNT, PRIVATE_AGENT_ACCOUNT
from nvcf_proto.tokens import WorkerClaims

_log = logging.getLogger(__name__)

WORKER_ACCOUNT = "WORKERS"
LISTED_AT_ONCE = 1024
# A change is acted upon after this time, with all others of it.
SETTLE_SECONDS = 0.5
# Without a change: a connection may be older than this gateway.
INTERVAL_SECONDS = 20.0
AGENT_INTERVAL_SECONDS = 10.0
# After an undeployment, a worker that no agent ends has this time to finish what it holds.
DRAIN_SECONDS = 30.0
_REPLY_SECONDS = 2.0
_SERVERS = "$SYS.REQ.SERVER"


def connection_name(claims: WorkerClaims) -> str:
    """Return the name that the broker keeps with a worker's connection; workers cannot choose it."""
    recorded = int(claims.has_record)
    return f"{claims.version_id}.{recorded}.{int(claims.issued_at)}.{claims.request_id}.{claims.instance_id}"


def claims_of(name: str) -> WorkerClaims | None:
    """Return what is known of a connection by its name; None for one of another form."""
    version_id, has_record, issued_at, request_id, instance_id = (*name.split(".", 4), "", "", "", "")[:5]
    if has_record not in ("0", "1") or not issued_at.isdigit() or not instance_id:
        return None
    return WorkerClaims(
        instance_id, "", version_id, "", 0.0, float(issued_at), has_record == "1", request_id=request_id
    )


class Connections:
    """Watches the connections of workers and agents. `client` is one of the broker's system account."""

    def __init__(self, client: BrokerClient, access: WorkerAccess, agents: AgentAccess) -> None:
        self._client = client
        self._access = access
        self._agents = agents
        self._draining: dict[tuple[str, int], float] = {}

    async def watch(self) -> None:
        """End connections that have lost their right, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_workers(), name="workers' connections")
            group.create_task(self._watch_agents(), name="agents' connections")

    async def _watch_workers(self) -> None:
        """Look after each change of instances and deployments."""
        ended = self._access.registry.index.ended
        while True:
            try:
                await self._end_void_workers()
            except (nats.errors.Error, OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("cannot look after the broker's connections: %s", describe_error(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await ended.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            ended.clear()

    async def _watch_agents(self) -> None:
        """Look now and then whether clusters and keys of agents are gone."""
        while True:
            try:
                await self._end_void_agents()
            except (nats.errors.Error, OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("cannot look after the agents' connections: %s", describe_error(error))
            await asyncio.sleep(AGENT_INTERVAL_SECONDS)

    async def _end_void_agents(self) -> None:
        for account in (AGENT_BROKER_ACCOUNT, PRIVATE_AGENT_ACCOUNT):
            async for server, connection in self._connections(account):
                name = str(connection.get("authorized_user") or "")
                reason = self._agents.why_void(name)
                if name and reason is not None:
                    _log.warning("ending the broker connection of agent %s: %s", name, reason)
                    await self._kick(server, int(connection["cid"]))

    async def _end_void_workers(self) -> None:
        known, self._draining = self._draining, {}
        async for server, connection in self._connections(WORKER_ACCOUNT):
            claims = claims_of(str(connection.get("authorized_user") or ""))
            reason = None if claims is None else self._access.why_revoked(claims)
            if claims is None or reason is None:
                continue
            cid, now = int(connection["cid"]), time.monotonic()
            if reason == NOT_DEPLOYED:
                since = self._draining[server, cid] = known.get((server, cid), now)
                if now - since < DRAIN_SECONDS:
                    continue
            _log.warning("ending the broker connection of instance %s: %s", claims.instance_id, reason)
            await self._kick(server, cid)

    async def _kick(self, server: str, connection: int) -> None:
        body = json.dumps({"cid": connection}).encode()
        await self._client.request(f"{_SERVERS}.{server}.KICK", body, timeout=_REPLY_SECONDS)

    async def _connections(self, account: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield all connections of a broker account, each with the id of its server."""
        replies: asyncio.Queue[Any] = asyncio.Queue()
        subscription = await self._client.subscribe(self._client.new_inbox(), cb=replies.put)
        try:
            await self._ask(account, "PING", 0, subscription.subject)
            while True:
                try:
                    async with asyncio.timeout(_REPLY_SECONDS):
                        message = await replies.get()
                except TimeoutError:
                    return
                answer = json.loads(message.data)
                server, page = str(answer["server"]["id"]), answer["data"]
                listed = page.get("connections") or []
                for each in listed:
                    yield server, each
                following = int(page["offset"]) + len(listed)
                if listed and following < int(page["total"]):
                    await self._ask(account, server, following, subscription.subject)
        finally:
            await subscription.unsubscribe()

    async def _ask(self, account: str, server: str, offset: int, reply: str) -> None:
        wanted = {"auth": True, "acc": account, "limit": LISTED_AT_ONCE, "offset": offset}
        subject = f"{_SERVERS}.{server}.CONNZ"
        await self._client.publish(subject, json.dumps(wanted).encode(), reply=reply)
