"""The connection between a worker and the gateways of its requests.

`Transport` is what an exchange needs. `GatewayTransport` implements it by NATS and HTTP: a response goes by
inline reply, else by POST `request-attach`; see protocol.md, section 3.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

import nats.errors

from nvcf_proto.headers import REPLY_STATUS
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.subjects import fallback_subject
from nvcf_worker.errors import CallerGone, MalformedWork
from nvcf_worker.exchange.attach import AttachClient
from nvcf_worker.exchange.post import StreamPost, post_complete
from nvcf_worker.function.body import Download
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.message import AttachTarget, ReplyAddress, parse_reply_address

if TYPE_CHECKING:
    from nvcf_broker.requests import ReplyInbox

log = logging.getLogger("nvcf_worker")

REPLY_TIMEOUT = 2.0
MAX_UNCONFIRMED = 256

Unlisten = Callable[[], Coroutine[Any, Any, None]]


class NoGateway(enum.Enum):
    """Why there is no fallback gateway."""

    NO_ANSWER = "no gateway answered"
    NOT_WANTED = "its request is in no queue any more"


class Transport(Protocol):
    """Carries bodies and responses between a worker and gateways."""

    async def deliver(self, address: ReplyAddress, response: Outcome, sent: Callable[[], None]) -> None:
        """Deliver a response; return when the gateway has confirmed it.

        `sent` is called, once or more, as soon as the whole response has left this process. A stream is not
        closed here. Raises CallerGone when nobody waits for it; GatewayGone when the gateway cannot be
        reached and nothing of a stream has been used up; another DeliveryError when that is too late.
        """

    async def post(self, address: ReplyAddress, reply: Reply) -> None:
        """Deliver a complete response by POST alone. Raises as `deliver`."""

    async def fetch(self, target: AttachTarget, *, whole_request: bool, attempt: int) -> Download:
        """Open the download of a request's body, or of the whole request.

        Raises BodyUnavailable when the gateway refuses, GatewayGone when it cannot be reached.
        """

    async def find_gateway(self, request_id: str) -> ReplyAddress | NoGateway:
        """Ask for a gateway that takes the response in place of the request's own; wait 2 s at most."""

    async def listen(self, request_id: str) -> Unlisten | None:
        """Subscribe to one request's polls, if they have a subject of their own; return how to end that."""


class GatewayTransport:
    """The platform's transport of one worker.

    replies: returns the reply inbox of the present broker connection, if there is one. listen: subscribes to
    the polls of one request.
    """

    def __init__(
        self,
        version_id: str,
        attach: AttachClient,
        replies: Callable[[], ReplyInbox | None],
        listen: Callable[[str], Coroutine[Any, Any, Unlisten | None]],
    ) -> None:
        self._lookup_subject = fallback_subject(version_id)
        self._replies = replies
        self._attach = attach
        self.fetch = attach.fetch
        self.listen = listen

    async def deliver(self, address: ReplyAddress, response: Outcome, sent: Callable[[], None]) -> None:
        """Deliver by inline reply where the gateway offers it and the response fits, else by POST."""
        if isinstance(response, StreamReply):
            await StreamPost(self._attach, address.target, response).run(sent)
        elif not await self._reply_inline(address, response, sent):
            await post_complete(self._attach, address.target, response, sent)

    async def post(self, address: ReplyAddress, reply: Reply) -> None:
        """Deliver a complete response by POST alone. Raises as `deliver`."""
        await post_complete(self._attach, address.target, reply, nothing)

    async def _reply_inline(self, address: ReplyAddress, reply: Reply, sent: Callable[[], None]) -> bool:
        inbox = self._replies()
        if address.reply_subject is None or inbox is None or len(reply.body) > address.reply_max_bytes:
            return False
        encoded = inline_response(reply)
        if len(encoded) > address.reply_max_bytes:
            return False
        # With a gateway that does not confirm, replies must not pile up without bound: beyond this number a
        # request keeps its slot until it is confirmed.
        on_sent = sent if len(inbox) < MAX_UNCONFIRMED else nothing
        try:
            deadline = time.monotonic() + REPLY_TIMEOUT
            confirmed = await inbox.ask(address.reply_subject, encoded, deadline=deadline, on_sent=on_sent)
        except nats.errors.Error as error:
            log.debug("the inline reply could not be sent: %s", error)
            return False
        if confirmed is None:
            return False
        status = confirmed.headers.get(REPLY_STATUS) if confirmed.headers else None
        if status == "410":
            raise CallerGone("the caller is gone")
        return status is None

    async def find_gateway(self, request_id: str) -> ReplyAddress | NoGateway:
        """Ask all gateways of the platform once ([ext]); third-party gateways do not answer."""
        inbox = self._replies()
        if inbox is None:
            return NoGateway.NO_ANSWER
        # As long as inline replies wait: the inbox expires its entries in the order of their requests.
        deadline = time.monotonic() + REPLY_TIMEOUT
        try:
            found = await inbox.ask(
                self._lookup_subject, request_id.encode(), deadline=deadline, on_sent=nothing
            )
        except nats.errors.Error as error:
            log.debug("no fallback gateway could be asked for: %s", error)
            return NoGateway.NO_ANSWER
        if found is None:
            return NoGateway.NO_ANSWER
        if found.headers and found.headers.get(REPLY_STATUS) == "410":
            return NoGateway.NOT_WANTED
        try:
            return parse_reply_address(found.data, found.headers)
        except MalformedWork as error:
            log.warning("a gateway offered an unusable reply address: %s", error)
            return NoGateway.NO_ANSWER


def nothing() -> None:
    """Do nothing, where nobody has to learn that a response was sent."""


def inline_response(reply: Reply) -> bytes:
    """Encode a complete response as an InlineResponse."""
    message = nvcf_pb2.InlineResponse(body=reply.body, httpStatusCode=reply.status, endOfResponse=True)
    for name, value in reply.headers:
        message.headers.add(key=name, value=value)
    return message.SerializeToString()
