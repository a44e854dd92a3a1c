"""What is retained is given up after its time, with one timer for all."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from nvcf_gateway.exchange import expiry
from nvcf_gateway.exchange.bodies import BytesSource, CallerBody
from nvcf_gateway.exchange.expiry import Expiry
from nvcf_gateway.exchange.pending import Pending, PendingRequests
from nvcf_gateway.exchange.sinks import CollectSink
from nvcf_proto.h1 import RequestHead
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def _short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "PAUSE", 0.01)


async def test_items_end_in_their_order_unless_discarded() -> None:
    ended: list[str] = []
    of: Expiry[str] = Expiry(0.1, ended.append)
    for item in ("a", "b", "c"):
        of.add(item)
        await asyncio.sleep(0.01)
    of.discard("b")
    of.add("a")
    await eventually(lambda: ended == ["c", "a"], "both have ended")
    assert len(of) == 0
    # The next one starts the timer again.
    of.add("d")
    await eventually(lambda: ended[2:] == ["d"], "the last one has ended")


async def test_nothing_ends_before_its_time() -> None:
    ended: list[tuple[str, float]] = []
    clock = asyncio.get_running_loop().time
    of: Expiry[str] = Expiry(0.1, lambda item: ended.append((item, clock())))
    begun = {}
    for item in ("a", "b"):
        begun[item] = clock()
        of.add(item)
        await asyncio.sleep(0.03)
    await eventually(lambda: len(ended) == 2, "both have ended")
    assert all(at - begun[item] >= 0.099 for item, at in ended)


def _pending(request_token: str | None = None) -> Pending:
    head = RequestHead("POST", "/path", [("a", "b")])
    body = CallerBody(BytesSource(b"body"), 4, spool_memory_bytes=0)
    return Pending("request", "version", CollectSink(1), body, head, request_token=request_token)


async def test_a_retained_request_is_forgotten_after_its_time() -> None:
    requests = PendingRequests()
    answered: list[bool] = []
    pending = _pending()
    pending.on_response = answered.append
    requests.retain(pending, 30.0)
    requests.expire(pending, 0.05)
    assert requests.detached("request") is pending
    await eventually(lambda: not len(requests), "it is forgotten")
    assert answered == [False]
    assert requests.by_inline_token(pending.inline_token) is None


async def test_a_removed_request_is_held_by_no_timer() -> None:
    requests = PendingRequests()
    pending = _pending()
    requests.retain(pending, 3600.0)
    requests.remove(pending)
    gone = weakref.ref(pending.sink)
    del pending
    gc.collect()
    assert gone() is None


async def test_a_kept_request_holds_neither_body_nor_headers() -> None:
    pending = _pending()
    pending.let_go()
    assert (pending.head.method, pending.head.headers) == ("POST", [])
    assert pending.body.prefix == b""
    # The rest of its body is fetched here: it is needed.
    fetched = _pending("token")
    fetched.let_go()
    assert fetched.head.headers
