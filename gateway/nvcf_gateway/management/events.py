"""What has happened to versions, newest first: `GET /v2/nvcf/events`; and the clusters there are.

Events are read straight from their stream by batched direct gets, in windows that go back in time: the
stream can be read forwards only.
"""

from __future__ import annotations

import asyncio
import json
import logging

import nats.errors
from aiohttp import web
from nats.aio.client import Client
from nats.aio.msg import Msg

from nvcf_broker.connection import describe_error
from nvcf_broker.errors import BrokerError, BrokerUnavailableError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_broker.requests import raise_if_cancelled
from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.management.resources import authorized, unavailable
from nvcf_gateway.management.shown import shown
from nvcf_gateway.registry import Registry
from nvcf_proto import compute, subjects
from nvcf_proto.compute import Event
from nvcf_proto.errors import ContractError
from nvcf_proto.ids import is_id
from nvcf_proto.models import Scope

_log = logging.getLogger(__name__)

KINDS = ("deployment", "scaling", "instance", "cluster", "secret")
DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
FIRST_WINDOW = 256
WINDOW_GROWTH = 4
# The newest events that one query reads at most: an account may have few among many of others.
MOST_READ = 20_000
BATCH = 1024
TIMEOUT = 5.0


class EventLog:
    """Reads the event stream. Raises BrokerError when the broker does not answer."""

    def __init__(self, client: Client, requests: Requester) -> None:
        self._client = client
        self._jetstream = JetStream(requests, TIMEOUT)

    async def newest(self, wanted: set[str], kind: str | None, limit: int) -> list[Event]:
        """Return up to `limit` events of the versions `wanted`, newest first."""
        if not wanted:
            return []
        subject = compute.event_subject(next(iter(wanted))) if len(wanted) == 1 else compute.EVENTS_SUBJECTS
        first, last = await self._bounds()
        found: list[Event] = []
        window, before = FIRST_WINDOW, last + 1
        while len(found) < limit and before > max(first, last + 1 - MOST_READ):
            start = max(first, before - window)
            part = await self._between(subject, start, before)
            found += [
                event for event in reversed(part) if event.version_id in wanted and kind in (None, event.kind)
            ]
            before, window = start, window * WINDOW_GROWTH
        return found[:limit]

    async def _bounds(self) -> tuple[int, int]:
        """Return the first and last sequence of the stream; an empty one ends before it begins."""
        stream = await self._jetstream.stream_info(compute.EVENTS_STREAM)
        # Without a stream nothing has happened yet.
        return (1, 0) if stream is None else (stream.first_sequence, stream.last_sequence)

    async def _between(self, subject: str, start: int, before: int) -> list[Event]:
        """Return events of a subject with `start` <= sequence < `before`, oldest first."""
        events: list[Event] = []
        while start < before:
            messages = await self._batch(subject, start, min(BATCH, before - start))
            numbered = [(int((each.headers or {})["Nats-Sequence"]), each) for each in messages]
            events += [event for number, each in numbered if number < before and (event := _read(each))]
            if not numbered or numbered[-1][0] >= before:
                break
            start = numbered[-1][0] + 1
        return events

    async def _batch(self, subject: str, start: int, count: int) -> list[Msg]:
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = self._client.new_inbox()

        async def take(message: Msg) -> None:
            arrived.put_nowait(message)

        query = {"batch": count, "seq": start, "next_by_subj": subject}
        messages: list[Msg] = []
        subscription = await self._client.subscribe(inbox, cb=take)
        try:
            target = f"{subjects.API_PREFIX}.DIRECT.GET.{compute.EVENTS_STREAM}"
            await self._client.publish(target, json.dumps(query).encode(), reply=inbox)
            raise_if_cancelled()
            async with asyncio.timeout(TIMEOUT):
                # The last message of a batch carries a status: 204, or 404 where there is nothing.
                while "Status" not in ((message := await arrived.get()).headers or {}):
                    messages.append(message)
        except (nats.errors.Error, TimeoutError) as error:
            raise BrokerUnavailableError(f"events cannot be read: {describe_error(error)}") from error
        finally:
            await subscription.unsubscribe()
        raise_if_cancelled()
        return messages


def _read(message: Msg) -> Event | None:
    try:
        return Event.from_json(message.data)
    except ContractError as error:
        _log.debug("event left out: %s", error)
        return None


class Events:
    """Handlers of `/v2/nvcf/events` and `/v2/nvcf/clusters`."""

    def __init__(self, authenticator: Authenticator, registry: Registry, log: EventLog) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._log = log

    async def events(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/events[?functionVersionId=&kind=&limit=]: list the account's events."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        version_id, kind, limit = _query(request)
        wanted = {
            version.id
            for version in self._registry.versions.values()
            if version.nca_id == caller.nca_id
            and caller.key.covers(version.function_id)
            and version_id in (None, version.id)
        }
        if version_id is None and not caller.key.function_ids:
            wanted.add(compute.account_event_id(caller.nca_id))
        try:
            found = await self._log.newest(wanted, kind, limit)
        except BrokerError as error:
            raise unavailable(error) from None
        return json_response(200, {"events": [shown(event, "at") for event in found]})

    async def clusters(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/clusters: list all clusters, as their agents last reported them."""
        authorized(self._authenticator, request, Scope.LIST)
        found = sorted(self._registry.clusters.values(), key=lambda cluster: cluster.id)
        return json_response(200, {"clusters": [shown(cluster, "heartbeatAt") for cluster in found]})


def _query(request: web.BaseRequest) -> tuple[str | None, str | None, int]:
    version_id = request.query.get("functionVersionId")
    if version_id is not None and not is_id(version_id):
        raise HttpProblem(400, "functionVersionId: not a UUID", field="functionVersionId")
    kind = request.query.get("kind")
    if kind is not None and kind not in KINDS:
        raise HttpProblem(400, f"kind: expected one of {', '.join(KINDS)}", field="kind")
    text = request.query.get("limit", str(DEFAULT_LIMIT))
    # Not `isdigit` alone: it takes digits of other scripts, and `int` refuses thousands of them.
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_LIMIT):
        raise HttpProblem(400, f"limit: expected 1 to {MAX_LIMIT}", field="limit")
    return version_id, kind, int(text)
