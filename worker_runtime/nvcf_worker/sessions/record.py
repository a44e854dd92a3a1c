"""The record of a session in the broker, by which a gateway finds it again (protocol.md, section 7.4)."""

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

RESPONSE_SECONDS = 5.0
REGISTER_ATTEMPTS = 3
# Long enough that readers of the stream at this moment see it as the end of the record.
_TOMBSTONE_LIFE = {"Nats-TTL": "1s"}


class SessionRecord:
    """The entry of one session in the lookup stream, and its subscription to reconnects."""

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
        """Subscribe to reconnects. Called again after the broker connection was replaced."""
        subject = self._own_subject or subjects.reconnect_subject(self._request_id)
        try:
            self._subscription = await connection.subscribe(subject, cb=self._on_reconnect)
        except nats.errors.Error as error:
            log.warning("callers cannot reconnect to this session: %s", error)

    async def register(self, connection: Client) -> None:
        """Write or renew the entry."""
        problem: Exception | None = None
        for _ in range(REGISTER_ATTEMPTS):
            try:
                response = await connection.request(self._subject, self._payload, timeout=RESPONSE_SECONDS)
                error = json.loads(response.data).get("error")
                if error is None:
                    return
                problem = ValueError(str(error.get("description", error)))
            except nats.errors.NoRespondersError as error:
                problem = error
                break
            except (nats.errors.Error, ValueError) as error:
                problem = error
        log.warning("callers cannot reconnect to this session: its record was not stored: %s", problem)

    async def forget(self, connection: Client) -> None:
        """Remove the entry and the subscription: the session has ended."""
        try:
            if self._subscription is not None:
                await self._subscription.unsubscribe()
            if self._own_subject is not None:
                # [ext] A gateway that names a subject of its own does not allow workers to purge. An empty
                # record replaces the old one and expires by itself.
                await connection.publish(self._subject, b"", headers=_TOMBSTONE_LIFE)
                return
            stream = subjects.session_lookup_stream(self._region)
            request = json.dumps({"filter": self._subject}).encode()
            # Nobody reads the answer, and a broker that denies it sends none: the slot does not wait for it.
            await connection.publish(
                f"{subjects.API_PREFIX}.STREAM.PURGE.{stream}", request, reply=connection.new_inbox()
            )
        except nats.errors.Error as error:
            log.info("the record of the session was not removed: %s", error)
