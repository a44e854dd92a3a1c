"""Another way back when the gateway of a request is gone ([ext], protocol.md section 4, kept requests)."""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import nats.errors

from nvcf_proto.headers import REPLY_STATUS
from nvcf_proto.subjects import rescue_subject
from nvcf_worker.errors import MalformedWork
from nvcf_worker.exchange.deliver import INLINE_ANSWER_TIMEOUT
from nvcf_worker.message import Door, parse_door

if TYPE_CHECKING:
    from nvcf_broker.requests import ReplyInbox

log = logging.getLogger("nvcf_worker")


class NoDoor(enum.Enum):
    """Why there is no other way."""

    NO_ANSWER = "no gateway answered"
    NOT_WANTED = "nobody can want the answer any more"


class Rescuer:
    """Asks the gateways of the platform; other installations' gateways do not answer."""

    def __init__(self, version_id: str, replies: Callable[[], ReplyInbox | None]) -> None:
        self._subject = rescue_subject(version_id)
        self._replies = replies

    async def ask(self, request_id: str) -> Door | NoDoor:
        """Ask once, for at most 2 s."""
        inbox = self._replies()
        if inbox is None:
            return NoDoor.NO_ANSWER
        # As long as inline replies wait: the inbox expires its entries in the order of their requests.
        deadline = time.monotonic() + INLINE_ANSWER_TIMEOUT
        try:
            answer = await inbox.ask(
                self._subject, request_id.encode(), deadline=deadline, on_sent=lambda: None
            )
        except nats.errors.Error as error:
            log.debug("no way back could be asked for: %s", error)
            return NoDoor.NO_ANSWER
        if answer is None:
            return NoDoor.NO_ANSWER
        if answer.headers and answer.headers.get(REPLY_STATUS) == "410":
            return NoDoor.NOT_WANTED
        try:
            return parse_door(answer.data, answer.headers)
        except MalformedWork as error:
            log.warning("a gateway offered an unusable way back: %s", error)
            return NoDoor.NO_ANSWER
