"""Which way an answer takes, and what happens when that way is blocked."""

from __future__ import annotations

import pytest

from nvcf_worker import SyncRequest
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually


def sized(request: SyncRequest) -> bytes:
    return b"x" * int(request.read())


async def _empty(gateway: PeerGateway) -> bool:
    return await gateway.queued() == 0


async def test_small_answers_go_inline_and_large_ones_by_attach(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    await start_worker(sized).ready()
    for size, limit, way in (
        (0, 1000, "inline"),
        (900, 1000, "inline"),
        (1000, 1000, "attach"),
        (5_000_000, 262_144, "attach"),
        (10, None, "attach"),
    ):
        call = await gateway.invoke(b"%d" % size, reply_max_bytes=limit)
        answer = await call.answer()
        assert len(answer.body) == size
        assert call.via == [way]
        if way == "attach":
            assert answer.headers["content-length"] == str(size)
    await eventually(lambda: _empty(gateway), "everything acknowledged")


async def test_an_inline_reply_that_nobody_answers_falls_back_to_attach(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    await start_worker(sized).ready()
    gateway.inline = "silent"
    call = await gateway.invoke(b"10")
    assert (await call.answer()).body == b"x" * 10
    assert call.via == ["attach"]


async def test_an_inline_reply_without_responders_falls_back_at_once(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    await start_worker(sized).ready()
    await gateway.stop_inline()
    call = await gateway.invoke(b"10")
    assert (await call.answer()).body == b"x" * 10
    assert call.via == ["attach"]


async def test_a_caller_that_is_gone_ends_the_request(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    await start_worker(sized).ready()
    gateway.inline = gateway.rescue = "gone"
    call = await gateway.invoke(b"10")
    await eventually(lambda: _empty(gateway), "acknowledged without delivery")
    assert call.via == []


@pytest.mark.parametrize("size", [10, 2_000_000])
async def test_a_gateway_in_trouble_is_tried_again(
    gateway: PeerGateway, start_worker: StartWorker, size: int
) -> None:
    await start_worker(sized).ready()
    gateway.fail_posts = 2
    call = await gateway.invoke(b"%d" % size, reply_max_bytes=None)
    assert len((await call.answer()).body) == size
    assert call.posts == 1
    await eventually(lambda: _empty(gateway), "acknowledged")


async def test_a_token_that_is_not_known_any_more_ends_the_request(
    gateway: PeerGateway, start_worker: StartWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await start_worker(sized).ready()
    for size in (10, 2_000_000):
        call = await gateway.invoke(b"%d" % size, reply_max_bytes=None, forget=True)
        await eventually(lambda: _empty(gateway), "acknowledged")
        assert call.posts == 0
    assert "nobody wants the response" in caplog.text


async def test_a_gateway_that_is_gone_holds_up_no_other_request(
    gateway: PeerGateway, start_worker: StartWorker, caplog: pytest.LogCaptureFixture
) -> None:
    worker = start_worker(sized, concurrency=1)
    await worker.ready()
    url, gateway.http_url = gateway.http_url, "http://127.0.0.1:9"
    lost = await gateway.invoke(b"10", reply_max_bytes=None)
    await eventually(lambda: "gave up after" in caplog.text, "no way found")
    gateway.http_url = url
    assert (await (await gateway.invoke(b"3")).answer()).body == b"xxx"
    assert await gateway.queued() >= 1
    await gateway.cancel(lost)
    await eventually(lambda: _empty(gateway), "both acknowledged")


async def test_answers_go_through_the_proxy(gateway: PeerGateway, start_worker: StartWorker) -> None:
    await start_worker(sized).ready()
    proxy, url = gateway.http_url, gateway.http_url
    # The peer's server plays the proxy: it gets the absolute form and answers itself.
    gateway.http_url = "http://gateway.invalid:1234"
    call = await gateway.invoke(b"5", reply_max_bytes=None, proxy=proxy)
    assert (await call.answer()).body == b"xxxxx"
    gateway.http_url = url
