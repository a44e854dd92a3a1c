"""Getting an answer to the caller: by inline reply, else by `posting` (protocol.md sections 2, 3)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import nats.errors

from nvcf_proto.headers import REPLY_STATUS
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.errors import CallerGone
from nvcf_worker.exchange.attach import AttachClient
from nvcf_worker.exchange.post import StreamPost, post_complete
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.message import Door

if TYPE_CHECKING:
    from nvcf_broker.requests import ReplyInbox

log = logging.getLogger("nvcf_worker")

INLINE_ANSWER_TIMEOUT = 2.0
MAX_UNCONFIRMED = 256


class Deliverer:
    """Sends answers for one worker. `replies` gives the inbox of the present broker connection, if any."""

    def __init__(self, attach: AttachClient, replies: Callable[[], ReplyInbox | None]) -> None:
        self._attach = attach
        self._replies = replies

    async def deliver(self, door: Door, outcome: Outcome, written: Callable[[], None]) -> None:
        """Deliver and return when the gateway has confirmed it.

        `written` is called, once or more, as soon as the whole answer has left this process. A stream is
        not closed here. Raises CallerGone when nobody waits for it; GatewayGone when the gateway cannot be
        reached and nothing of a stream has been used up; another DeliveryError when that is too late.
        """
        if isinstance(outcome, StreamReply):
            await StreamPost(self._attach, door.target, outcome).run(written)
            return
        if await self._deliver_inline(door, outcome, written):
            return
        await post_complete(self._attach, door.target, outcome, written)

    async def post(self, door: Door, reply: Reply) -> None:
        """Deliver a complete answer by POST alone. Raises as `deliver`."""
        await post_complete(self._attach, door.target, reply, _nothing)

    async def _deliver_inline(self, door: Door, reply: Reply, written: Callable[[], None]) -> bool:
        inbox = self._replies()
        if door.reply_subject is None or inbox is None or len(reply.body) > door.reply_max_bytes:
            return False
        encoded = inline_response(reply)
        if len(encoded) > door.reply_max_bytes:
            return False
        # With a gateway that does not answer, unconfirmed replies must not pile up without bound: beyond
        # this number a request keeps its slot until it is confirmed.
        on_sent = written if len(inbox) < MAX_UNCONFIRMED else _nothing
        try:
            deadline = time.monotonic() + INLINE_ANSWER_TIMEOUT
            answer = await inbox.ask(door.reply_subject, encoded, deadline=deadline, on_sent=on_sent)
        except nats.errors.Error as error:
            log.debug("inline reply could not be sent: %s", error)
            return False
        if answer is None:
            return False
        status = answer.headers.get(REPLY_STATUS) if answer.headers else None
        if status == "410":
            raise CallerGone("the caller is gone")
        return status is None


def _nothing() -> None:
    return None


def inline_response(reply: Reply) -> bytes:
    """The encoded InlineResponse of a complete answer."""
    message = nvcf_pb2.InlineResponse(body=reply.body, httpStatusCode=reply.status, endOfResponse=True)
    for name, value in reply.headers:
        message.headers.add(key=name, value=value)
    return message.SerializeToString()
