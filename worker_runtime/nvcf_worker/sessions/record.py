"""What a session tells the broker: where it is found again, and that it listens.

See protocol.md, section 7.4.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import nats.errors

from nvcf_proto import subjects
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.message import Work

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log = logging.getLogger("nvcf_worker")

ANSWER_SECONDS = 5.0
REGISTER_ATTEMPTS = 3
# Long enough to be seen as the end of the record by whoever reads the stream just then.
_TOMBSTONE_LIFE = {"Nats-TTL": "1s"}


class SessionRecord:
    """One session's entry in the lookup stream and its subscription to reconnects."""

    def __init__(
        self, work: Work, function_id: str, version_id: str, on_reconnect: Callable[[Msg], Awaitable[None]]
    ) -> None:
        self._request_id = work.request_id
        self._region = work.region
        self._subject = subjects.session_lookup_subject(work.region, version_id, work.request_id)
        self._payload = nvcf_pb2.StatefulSessionTracking(
            functionId=function_id, functionVersionId=version_id, invokerNcaId=work.message.ncaId
        ).SerializeToString()
        self._own_subject = work.reconnect_subject
        self._on_reconnect = on_reconnect
        self._subscription: Subscription | None = None

    async def listen(self, connection: Client) -> None:
        """Hear of reconnects; again after the connection was replaced."""
        subject = self._own_subject or subjects.reconnect_subject(self._request_id)
        try:
            self._subscription = await connection.subscribe(subject, cb=self._on_reconnect)
        except nats.errors.Error as error:
            log.warning("a caller cannot come back to this session: %s", error)

    async def register(self, connection: Client) -> None:
        """Write the entry, or renew it."""
        problem: Exception | None = None
        for _ in range(REGISTER_ATTEMPTS):
            try:
                answer = await connection.request(self._subject, self._payload, timeout=ANSWER_SECONDS)
                error = json.loads(answer.data).get("error")
                if error is None:
                    return
                problem = ValueError(str(error.get("description", error)))
            except nats.errors.NoRespondersError as error:
                problem = error
                break
            except (nats.errors.Error, ValueError) as error:
                problem = error
        log.warning("a caller cannot come back to this session, its record was not taken: %s", problem)

    async def forget(self, connection: Client) -> None:
        """The session is over."""
        try:
            if self._subscription is not None:
                await self._subscription.unsubscribe()
            if self._own_subject is not None:
                # [ext] A gateway that names a subject of its own lets workers purge nothing: an empty
                # record takes the place of the old one and goes away by itself.
                await connection.publish(self._subject, b"", headers=_TOMBSTONE_LIFE)
                return
            stream = subjects.session_lookup_stream(self._region)
            request = json.dumps({"filter": self._subject}).encode()
            await connection.request(
                f"{subjects.API_PREFIX}.STREAM.PURGE.{stream}", request, timeout=ANSWER_SECONDS
            )
        except nats.errors.Error as error:
            log.info("the session's record was not removed: %s", error)
