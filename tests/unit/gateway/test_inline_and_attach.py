"""A response comes by the broker and, since its worker waits 2 s at most, by POST as well: it counts once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.exchange.attach import Attach, InlineReplies
from nvcf_gateway.exchange.bodies import empty_body
from nvcf_gateway.exchange.pending import Outcome, Pending, PendingRequests
from nvcf_gateway.exchange.sinks import CollectSink
from nvcf_proto.h1 import RequestHead, ResponseHead
from nvcf_proto.pb import nvcf_pb2

INLINE = nvcf_pb2.InlineResponse(body=b"once", httpStatusCode=200, endOfResponse=True).SerializeToString()
POSTED = b"HTTP/1.1 200 OK\r\n\r\nonce"


class SlowStore:
    """A store that is busy until `done` is set; then it takes the response, or fails."""

    def __init__(self, *, takes: bool) -> None:
        self.takes = takes
        self.begun = asyncio.Event()
        self.done = asyncio.Event()

    def sink(self) -> CollectSink:
        return CollectSink(100)

    async def save(self, head: ResponseHead, body: bytes) -> bool:
        self.begun.set()
        await self.done.wait()
        if not self.takes:
            raise RuntimeError("the store fails")
        return True


@pytest.mark.parametrize("takes", [True, False])
async def test_a_post_waits_for_the_same_response_by_the_broker(takes: bool) -> None:
    store, requests, sink = SlowStore(takes=takes), PendingRequests(), CollectSink(100)
    pending = Pending(
        "r", "v", sink, empty_body(), RequestHead("POST", "/"), storage=store, stores_inline=True
    )
    requests.add(pending)
    answers: list[Any] = []

    async def publish(*answer: Any, headers: Any = None) -> None:
        answers.append(headers)

    message = SimpleNamespace(
        subject=f"x.{pending.inline_token}", data=INLINE, reply="y", _client=SimpleNamespace(publish=publish)
    )
    runner = web.ServerRunner(web.Server(Attach(requests).post))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    headers = {
        "Authorization": f"Bearer {pending.response_token}",
        "Content-Type": "application/octet-stream+h1",
    }
    try:
        async with BackgroundTasks() as background, aiohttp.ClientSession() as session:
            await InlineReplies(cast(Any, None), "gateway", requests, background).received(cast(Any, message))
            await store.begun.wait()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
            posting = asyncio.create_task(session.post(url, data=POSTED, headers=headers))
            await asyncio.wait({posting}, timeout=0.2)
            assert sink.head is None
            store.done.set()
            assert (await posting).status == 200
    finally:
        await runner.cleanup()
    assert await pending.outcome is (Outcome.INLINE if takes else Outcome.STREAMED)
    assert (sink.head is None) == takes
    assert answers == ([None] if takes else [])
