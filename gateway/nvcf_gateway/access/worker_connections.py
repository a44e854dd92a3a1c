"""Ends broker connections of workers and agents that have lost their right, with the system account."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import nats.errors

from nvcf_broker.connection import BrokerClient, describe_error
from nvcf_gateway.access.agent_identity import AgentAccess
from nvcf_gateway.access.publish_rates import Published, PublishRates
from nvcf_gateway.access.worker_access import NOT_DEPLOYED, PUBLISHES_TOO_MUCH, WorkerAccess
from nvcf_gateway.quotas.limits import Quota, count_refusal
from nvcf_proto.icms.names import AGENT_BROKER_ACCOUNT, PRIVATE_AGENT_ACCOUNT
from nvcf_proto.subjects import version_polling_subject
from nvcf_proto.tokens import WorkerClaims

_log = logging.getLogger(__name__)

WORKER_ACCOUNT = "WORKERS"
LISTED_AT_ONCE = 1024
# A change is acted upon after this time, with all others of it.
SETTLE_SECONDS = 0.5
# Without a change: a connection may be older than this gateway.
INTERVAL_SECONDS = 10.0
AGENT_INTERVAL_SECONDS = 10.0
# Between two looks at what each server receives, which cost one small message each.
RATE_SECONDS = 1.0
UNANSWERED_SECONDS = 30.0
# After an undeployment, a worker that no agent ends has this time to finish what it holds.
DRAIN_SECONDS = 30.0
# An instance that published too much may connect again after this time.
SHUT_OUT_SECONDS = 30.0
# So long a worker of another make counts as connected after it was last seen.
OTHERS_SECONDS = 120.0
_REPLY_SECONDS = 2.0
_TROUBLES = (nats.errors.Error, OSError, ValueError, KeyError, TypeError)
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


def _answers(claims: WorkerClaims, connection: Mapping[str, Any]) -> bool:
    """Return whether a worker answers on its version's own polling subjects [ext]."""
    subscribed = connection.get("subscriptions_list") or ()
    return version_polling_subject(claims.version_id, "*") in subscribed


class Connections:
    """Watches the connections of workers and agents. `client` is one of the broker's system account."""

    def __init__(
        self, client: BrokerClient, access: WorkerAccess, agents: AgentAccess, rates: PublishRates
    ) -> None:
        self._client = client
        self._access = access
        self._agents = agents
        self._rates = rates
        self._draining: dict[tuple[str, int], float] = {}
        self._silent: dict[tuple[str, int], str] = {}
        self._others: dict[str, float] = {}

    async def answering(self, versions: set[str]) -> set[str]:
        """Return those versions all of whose workers answer whether they have a request.

        Workers of other makes do not. One that was connected lately may come back and go on.
        """
        before = time.monotonic() - OTHERS_SECONDS
        others = {version for version, seen in self._others.items() if seen > before}
        connected: set[str] = set()
        try:
            async for _, connection in self._connections(WORKER_ACCOUNT):
                claims = claims_of(str(connection.get("authorized_user") or ""))
                if claims is not None:
                    (connected if _answers(claims, connection) else others).add(claims.version_id)
        except _TROUBLES as error:
            _log.warning("cannot look which workers answer: %s", describe_error(error))
            return set()
        return versions & connected - others

    async def watch(self) -> None:
        """End connections that have lost their right, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_workers(), name="workers' connections")
            group.create_task(self._watch_rates(), name="what the broker receives")
            group.create_task(self._watch_agents(), name="agents' connections")

    async def _watch_workers(self) -> None:
        """Look after each change of instances and deployments."""
        ended = self._access.registry.index.ended
        while True:
            try:
                await self._end_void_workers()
            except _TROUBLES as error:
                _log.warning("cannot look after the workers' connections: %s", describe_error(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await ended.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            ended.clear()

    async def _watch_rates(self) -> None:
        """Look after the workers at once when a server receives more than an account may publish."""
        received: dict[str, Published] = {}
        while True:
            # A broker that does not permit the question is not asked for ever.
            await asyncio.sleep(RATE_SECONDS if received else UNANSWERED_SECONDS)
            try:
                received = await self._received()
            except _TROUBLES as error:
                _log.debug("cannot look what the broker receives: %s", describe_error(error))
                continue
            if self._rates.may_be_exceeded(received, time.monotonic()):
                self._access.registry.index.ended.set()

    async def _received(self) -> dict[str, Published]:
        """Return what each server has received from all of its connections."""
        found: dict[str, Published] = {}
        replies: asyncio.Queue[Any] = asyncio.Queue()
        subscription = await self._client.subscribe(self._client.new_inbox(), cb=replies.put)
        try:
            await self._client.publish(f"{_SERVERS}.PING.STATSZ", b"", reply=subscription.subject)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RATE_SECONDS / 2):
                    while True:
                        answer = json.loads((await replies.get()).data)
                        counts = answer["statsz"]["received"]
                        found[str(answer["server"]["id"])] = Published(counts["msgs"], counts["bytes"])
        finally:
            await subscription.unsubscribe()
        return found

    async def _watch_agents(self) -> None:
        """Look now and then whether clusters and keys of agents are gone."""
        while True:
            try:
                await self._end_void_agents()
            except _TROUBLES as error:
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
        silent: dict[tuple[str, int], str] = {}
        published: dict[tuple[str, int], tuple[str, Published]] = {}
        instances: dict[tuple[str, int], str] = {}
        async for server, connection in self._connections(WORKER_ACCOUNT):
            claims = claims_of(str(connection.get("authorized_user") or ""))
            if claims is None:
                continue
            cid, now = int(connection["cid"]), time.monotonic()
            if not _answers(claims, connection):
                silent[server, cid] = claims.version_id
                if (server, cid) in self._silent:
                    self._others[claims.version_id] = now
            version = self._access.registry.versions.get(claims.version_id)
            if version is not None:
                counts = Published(int(connection.get("in_msgs", 0)), int(connection.get("in_bytes", 0)))
                published[server, cid] = (version.nca_id, counts)
                instances[server, cid] = claims.instance_id
            reason = self._access.why_revoked(claims)
            if reason is None:
                continue
            if reason == NOT_DEPLOYED:
                since = self._draining[server, cid] = known.get((server, cid), now)
                if now - since < DRAIN_SECONDS:
                    continue
            await self._end(server, cid, claims.instance_id, reason)
        # Seen twice: one that has just connected has not subscribed yet.
        self._silent = silent
        before = time.monotonic() - OTHERS_SECONDS
        self._others = {version: seen for version, seen in self._others.items() if seen > before}
        for server, cid in self._rates.sample(published, time.monotonic()):
            count_refusal(Quota.PUBLISHED_MESSAGES)
            self._access.shut_out(instances[server, cid], SHUT_OUT_SECONDS)
            await self._end(server, cid, instances[server, cid], PUBLISHES_TOO_MUCH)

    async def _end(self, server: str, cid: int, instance_id: str, reason: str) -> None:
        _log.warning("ending the broker connection of instance %s: %s", instance_id, reason)
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
        wanted = {
            "auth": True,
            "subscriptions": True,
            "acc": account,
            "limit": LISTED_AT_ONCE,
            "offset": offset,
        }
        subject = f"{_SERVERS}.{server}.CONNZ"
        await self._client.publish(subject, json.dumps(wanted).encode(), reply=reply)
