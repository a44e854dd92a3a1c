"""A fallback gateway for a worker whose request's gateway is gone ([ext]).

The message of a request names the replica that holds the caller. If that replica is dead, a worker of ours
asks `nvcf.attach.V` (body: the request id). Any replica answers with a StatelessConfig of its own and the
NATS headers of an inline reply, and stores what the worker delivers there. The reply 410 in
`Nvcf-Reply-Status` means that nobody can want the response any more: the request is in no queue. A request
that another service queued is that service's, and gets no answer. The broker lets a worker ask for its own
version only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from nats.aio.msg import Msg

from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import StoredMessage
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.exchange.bodies import empty_body
from nvcf_gateway.exchange.pending import Pending, PendingRequests
from nvcf_gateway.exchange.reply_subjects import ReplySubjects
from nvcf_gateway.exchange.states import State
from nvcf_gateway.queue.message import message_headers
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.registry import Registry
from nvcf_gateway.results.retention import Retention
from nvcf_proto import headers as names
from nvcf_proto.errors import InvalidId
from nvcf_proto.h1 import RequestHead
from nvcf_proto.ids import new_id, parse_id
from nvcf_proto.models import FunctionVersion
from nvcf_proto.pb import nvcf_pb2

_log = logging.getLogger(__name__)

QUEUE_GROUP = "nvcf-gateways"
MOST_AT_ONCE = 256
"""Queries of one version that are answered at the same time; a worker without an answer asks again."""


@dataclass(frozen=True, slots=True, eq=False)
class FallbackLookup:
    """Answers workers that have lost the gateway of a request."""

    config: GatewayConfig
    replies: ReplySubjects
    attach_url: Callable[[], str]
    registry: Registry
    queue: RequestQueue
    pending: PendingRequests
    retention: Retention
    background: BackgroundTasks
    _answering: Counter[str] = field(default_factory=Counter)

    async def on_query(self, message: Msg) -> None:
        """Take one query; answering it needs the broker, so it runs beside the next one."""
        version_id = message.subject.rpartition(".")[2]
        if self._answering[version_id] >= MOST_AT_ONCE:
            return
        self._answering[version_id] += 1
        answering = self.background.spawn(
            self._answer(message, version_id), "answer a worker whose gateway is gone"
        )
        answering.add_done_callback(lambda _: self._answered(version_id))

    def _answered(self, version_id: str) -> None:
        self._answering[version_id] -= 1
        if not self._answering[version_id]:
            del self._answering[version_id]

    async def _answer(self, message: Msg, version_id: str) -> None:
        try:
            request_id = parse_id(message.data.decode(errors="replace"), "request id")
            region, queued = await self._queued(version_id, request_id)
            if queued is None:
                return await _not_wanted(message)
            version = self.registry.versions.get(version_id)
            if version is None or not names.of_this_platform(queued.headers):
                return None
            nca_id = nvcf_pb2.WorkerInvokeFunctionRequest.FromString(queued.data).ncaId
            found = await self._reply_address(nca_id, version, request_id, region)
        except InvalidId as error:
            _log.warning("fallback lookup: %s", error)
            return await _not_wanted(message)
        except BrokerError as error:
            # No answer: the worker asks again.
            _log.warning("fallback lookup: %s", error)
            return None
        inline = self.config.inline_reply_bytes
        reply = await self.replies.subject(version_id, found.inline_token) if inline else None
        headers = message_headers({}, reply, inline)
        return await message._client.publish(message.reply, self._config_of(found), headers=headers)

    async def _reply_address(
        self, nca_id: str, version: FunctionVersion, request_id: str, region: str
    ) -> Pending:
        """Open a reply address for the request."""
        earlier = self.pending.detached(request_id)
        if earlier is not None:
            self.pending.remove(earlier)
        body = await self.retention.stored_body(request_id)
        # If no body is stored it may have been lost with its gateway. A worker reports that by a 502, which
        # must not become the result.
        of = (nca_id, version.function_id, version.id)
        kept = self.retention.kept(request_id, of, region, keyed=body is None)
        pending = Pending(
            request_id,
            version.id,
            kept.sink(),
            body or empty_body(),
            RequestHead("POST", version.inference_url, []),
            request_token=None if body is None else new_id(),
            state=State.DETACHED,
            storage=kept,
        )
        self.pending.retain(pending, self.config.results_ttl)
        return pending

    async def _queued(self, version_id: str, request_id: str) -> tuple[str, StoredMessage | None]:
        """Find the request and its region; a worker may ask a replica of any region."""
        for region in self.config.own_region_first:
            queued = await self.queue.request(version_id, request_id, region)
            if queued is not None:
                return region, queued
        return self.config.region, None

    def _config_of(self, pending: Pending) -> bytes:
        message = nvcf_pb2.StatelessConfig()
        connection = message.connectionConfigs.add().http1Config
        connection.targetURI = self.attach_url()
        connection.responseAuthorizationToken = pending.response_token
        if pending.request_token is not None:
            connection.requestAuthorizationToken = pending.request_token
        return message.SerializeToString()


async def _not_wanted(message: Msg) -> None:
    if message.reply:
        await message._client.publish(message.reply, b"", headers={names.REPLY_STATUS: "410"})
