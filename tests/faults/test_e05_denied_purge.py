"""E5: the end of a session waits for no answer to the purge of its record, which a broker may deny."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.message import NOWHERE, Work
from nvcf_worker.sessions.record import SessionRecord


class Denying:
    """A broker connection without any answer."""

    def __init__(self) -> None:
        self.published: list[str] = []

    def new_inbox(self) -> str:
        return "_INBOX.x"

    async def publish(self, subject: str, payload: bytes, **_: Any) -> None:
        self.published.append(subject)

    async def request(self, subject: str, payload: bytes, *, timeout: float) -> SimpleNamespace:
        await asyncio.sleep(timeout)
        raise TimeoutError


async def test_a_denied_purge_holds_nothing_up() -> None:
    request = nvcf_pb2.WorkerInvokeFunctionRequest()
    work = Work(request, new_id(), "local", "", 1, time.time(), NOWHERE, None)

    async def reconnect(_: Any) -> None:
        return None

    connection = Denying()
    record = SessionRecord(work, "f", "v", reconnect)
    async with asyncio.timeout(2):
        await record.forget(cast(Any, connection))
    assert connection.published == ["$JS.API.STREAM.PURGE.stateful_session_lookup_local"]
