"""Another way back for a worker whose gateway is gone ([ext]).

The message of a request names the replica that held the caller. When that one is dead, a worker of ours asks
`nvcf.attach.V` (body: the request id); any replica answers with a StatelessConfig of its own and the NATS
headers of an inline reply, and parks what the worker delivers there. 410 in `Nvcf-Reply-Status`: nobody can
want the answer any more. The broker lets a worker ask for its own version only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from nats.aio.msg import Msg

from nvcf_broker.errors import BrokerError
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.exchange.bodies import Body, CallerBody
from nvcf_gateway.exchange.call import BytesSource
from nvcf_gateway.exchange.pending import Pending, PendingRequests
from nvcf_gateway.owner import TaskOwner
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.registry import Registry
from nvcf_gateway.results.handoff import Keeping
from nvcf_gateway.results.store import ResultStore
from nvcf_gateway.results.store_sink import NO_RESULT, NO_RESULT_OF_KEY
from nvcf_proto import headers as names
from nvcf_proto.errors import InvalidId
from nvcf_proto.h1 import RequestHead
from nvcf_proto.ids import new_id, parse_id
from nvcf_proto.models import FunctionVersion
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.subjects import inline_reply_subject

_log = logging.getLogger(__name__)

QUEUE_GROUP = "nvcf-gateways"


class Rescue:
    """Answers workers that have lost the gateway of a request."""

    def __init__(
        self,
        config: GatewayConfig,
        gateway_id: str,
        attach_url: Callable[[], str],
        registry: Registry,
        queue: RequestQueue,
        pending: PendingRequests,
        keeping: Keeping,
        owner: TaskOwner,
        results: Mapping[str, ResultStore],
    ) -> None:
        self._results = results
        self._config = config
        self._gateway_id = gateway_id
        self._attach_url = attach_url
        self._registry = registry
        self._queue = queue
        self._pending = pending
        self._keeping = keeping
        self._owner = owner

    async def asked(self, message: Msg) -> None:
        """Take one question; answering it needs the broker, so it runs beside the next one."""
        self._owner.spawn(self._answer(message), "answer a worker whose gateway is gone")

    async def _answer(self, message: Msg) -> None:
        version = self._registry.versions.get(message.subject.rpartition(".")[2])
        try:
            request_id = parse_id(message.data.decode(errors="replace"), "request id")
            found = None if version is None else await self._door(version, request_id)
        except InvalidId as error:
            _log.warning("rescue: %s", error)
            found = None
        except BrokerError as error:
            # No answer: the worker asks again.
            _log.warning("rescue: %s", error)
            return
        if not message.reply:
            return
        if found is None:
            await message._client.publish(message.reply, b"", headers={names.REPLY_STATUS: "410"})
            return
        await message._client.publish(message.reply, self._config_of(found), headers=self._headers(found))

    async def _door(self, version: FunctionVersion, request_id: str) -> Pending | None:
        """A door for the request's answer; None when it is no longer in the queue."""
        region = await self._region_of(version.id, request_id)
        if region is None:
            return None
        store = self._results[region]
        earlier = self._pending.detached(request_id)
        if earlier is not None:
            self._pending.remove(earlier)
        stored = await self._keeping.stored_body(request_id)
        body: Body = stored or CallerBody(BytesSource(b""), 0, spool_memory_bytes=0)
        of = (request_id, version.function_id, version.id)
        # Without a body it may have been lost with its gateway, which a worker says by a 502.
        no_result = NO_RESULT if stored is not None else NO_RESULT_OF_KEY
        pending = Pending(
            request_id,
            version.id,
            self._keeping.sink(*of, store, no_result),
            body,
            RequestHead("POST", version.inference_url, []),
            request_token=None if stored is None else new_id(),
            keeper=self._keeping.keeper_for(*of, store, no_result),
            detached=True,
        )
        self._keeping.promised(pending, self._pending)
        return pending

    async def _region_of(self, version_id: str, request_id: str) -> str | None:
        """The region whose queue holds the request: any replica may be asked, of any region."""
        own = self._config.region
        for region in (own, *(each for each in self._config.regions if each != own)):
            if await self._queue.place(version_id, request_id, region) is not None:
                return region
        return None

    def _config_of(self, pending: Pending) -> bytes:
        message = nvcf_pb2.StatelessConfig()
        connection = message.connectionConfigs.add().http1Config
        connection.targetURI = self._attach_url()
        connection.responseAuthorizationToken = pending.response_token
        if pending.request_token is not None:
            connection.requestAuthorizationToken = pending.request_token
        return message.SerializeToString()

    def _headers(self, pending: Pending) -> dict[str, str]:
        limit = self._config.inline_reply_bytes
        return {
            names.REPLY_SUBJECT: inline_reply_subject(self._gateway_id, pending.inline_token),
            names.REPLY_MAX_BYTES: str(limit),
        }
