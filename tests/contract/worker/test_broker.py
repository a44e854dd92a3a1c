"""A broker that dies, comes back, or leaves; tokens and regions that change."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nvcf_worker import Request
from tests.support.peers.gateway import PeerGateway
from tests.support.platform.nats_server import NatsServer
from tests.support.platform.workers import LocalWorker, local_worker, worker_config
from tests.support.waiting import eventually


async def echo(request: Request) -> bytes:
    return await request.read()


async def _empty(gateway: PeerGateway) -> bool:
    return await gateway.queued() == 0


@pytest.fixture
async def own_gateway(own_broker: NatsServer) -> AsyncIterator[PeerGateway]:
    peer = PeerGateway(own_broker.url)
    await peer.start()
    yield peer
    await peer.stop()


@pytest.fixture
async def worker(
    own_gateway: PeerGateway, own_broker: NatsServer, tmp_path: Path
) -> AsyncIterator[LocalWorker]:
    started = local_worker(echo, worker_config(own_gateway, own_broker, tmp_path))
    await started.ready()
    yield started
    await started.stop()


async def test_a_broker_that_is_killed_and_comes_back_loses_nothing(
    own_gateway: PeerGateway, own_broker: NatsServer, worker: LocalWorker
) -> None:
    assert (await (await own_gateway.invoke(b"before")).answer()).body == b"before"
    # An acknowledgement that dies with the broker brings the request again, after its ack wait.
    await eventually(lambda: _empty(own_gateway), "the first one is acknowledged")
    own_broker.kill()
    await eventually(lambda: not worker.worker.ready, "connection loss noticed")
    own_broker.start()
    await eventually(lambda: worker.worker.ready, "pulling again")
    await eventually(lambda: own_gateway.connection.is_connected, "gateway connected again")
    calls = [await own_gateway.invoke(b"%d" % number) for number in range(20)]
    answers = await asyncio.gather(*(call.answer() for call in calls))
    assert [int(answer.body) for answer in answers] == list(range(20))
    await eventually(lambda: _empty(own_gateway), "acknowledged")


async def test_requests_queued_and_in_work_survive_the_broker(
    own_gateway: PeerGateway, own_broker: NatsServer, tmp_path: Path
) -> None:
    go_on = asyncio.Event()
    runs: list[bytes] = []

    async def handler(request: Request) -> bytes:
        body = await request.read()
        runs.append(body)
        if body == b"slow":
            await go_on.wait()
        return body

    worker = local_worker(handler, worker_config(own_gateway, own_broker, tmp_path, concurrency=1))
    await worker.ready()
    slow = await own_gateway.invoke(b"slow")
    await eventually(lambda: runs == [b"slow"], "in work")
    queued = [await own_gateway.invoke(b"%d" % number) for number in range(5)]
    own_broker.kill()
    own_broker.start()
    await eventually(lambda: worker.worker.ready, "pulling again")
    go_on.set()
    assert (await slow.answer()).body == b"slow"
    assert [(await call.answer()).body for call in queued] == [b"%d" % number for number in range(5)]
    assert runs.count(b"slow") == 1
    await eventually(lambda: _empty(own_gateway), "acknowledged")
    await worker.stop()


async def test_answers_while_the_broker_is_away_are_acknowledged_later(
    own_gateway: PeerGateway, own_broker: NatsServer, tmp_path: Path
) -> None:
    go_on = asyncio.Event()

    async def handler(request: Request) -> bytes:
        await go_on.wait()
        return await request.read()

    worker = local_worker(handler, worker_config(own_gateway, own_broker, tmp_path))
    await worker.ready()
    call = await own_gateway.invoke(b"a", reply_max_bytes=None)
    await eventually(lambda: worker.worker.in_flight == 1, "in work")
    own_broker.kill()
    await eventually(lambda: not worker.worker.ready, "connection loss noticed")
    go_on.set()
    assert (await call.answer()).body == b"a"
    own_broker.start()
    await eventually(lambda: own_gateway.connection.is_connected, "gateway connected again")
    await eventually(lambda: _empty(own_gateway), "acknowledged")
    await worker.stop()


async def test_lame_duck_mode(own_gateway: PeerGateway, own_broker: NatsServer, worker: LocalWorker) -> None:
    own_broker.send_signal(signal.SIGUSR2)
    await eventually(lambda: not worker.worker.ready, "left the leaving broker", timeout=30)
    own_broker.kill()
    own_broker.start()
    await eventually(lambda: worker.worker.ready, "back", timeout=30)
    await eventually(lambda: own_gateway.connection.is_connected, "gateway connected again")
    assert (await (await own_gateway.invoke(b"a")).answer()).body == b"a"


async def test_a_connection_that_the_broker_closes_for_good_is_made_anew(
    own_gateway: PeerGateway, worker: LocalWorker
) -> None:
    """E.g. when the user's broker credentials expire: nats-py does not reconnect then."""
    session = worker.worker._session
    assert session is not None
    await session.connection._process_err("'user authentication expired'")
    await eventually(lambda: worker.worker._session not in (None, session), "a new connection")
    await eventually(lambda: worker.worker.ready, "pulling again")
    assert (await (await own_gateway.invoke(b"a")).answer()).body == b"a"


async def test_the_token_is_renewed_before_it_expires(
    own_gateway: PeerGateway, own_broker: NatsServer, tmp_path: Path
) -> None:
    own_gateway.token_life = 1.5
    worker = local_worker(echo, worker_config(own_gateway, own_broker, tmp_path))
    await worker.ready()
    await eventually(lambda: len(own_gateway.connects) >= 3, "renewed")
    assert len(set(own_gateway.connects)) == len(own_gateway.connects)
    await worker.stop()


async def test_a_changed_region_list_restarts_the_pull(
    own_gateway: PeerGateway, own_broker: NatsServer, tmp_path: Path
) -> None:
    own_gateway.token_life = 1.5
    worker = local_worker(echo, worker_config(own_gateway, own_broker, tmp_path))
    await worker.ready()
    own_gateway.regions = ["new", "local"]
    await eventually(lambda: "new" in own_gateway.provisions, "new region provisioned")
    for region in ("new", "local"):
        call = await own_gateway.invoke(region.encode(), region=region)
        assert (await call.answer()).body == region.encode()
    own_gateway.regions = ["new"]
    await eventually(lambda: worker.worker._registration.connected.regions == ("new",), "new regions")
    assert (await (await own_gateway.invoke(b"a", region="new")).answer()).body == b"a"
    await worker.stop()


async def test_a_token_that_is_refused_after_its_expiry_ends_the_worker(
    own_gateway: PeerGateway, own_broker: NatsServer, tmp_path: Path
) -> None:
    own_gateway.token_life = 1.0
    worker = local_worker(echo, worker_config(own_gateway, own_broker, tmp_path))
    await worker.ready()
    own_gateway.accepted_tokens.clear()
    with pytest.raises(Exception, match="has expired and could not be renewed"):
        async with asyncio.timeout(20):
            await worker.task


async def test_in_progress_signals_keep_a_long_request(own_broker: NatsServer, tmp_path: Path) -> None:
    gateway = PeerGateway(own_broker.url, ack_wait=1.0)
    await gateway.start()
    runs = 0

    async def handler(request: Request) -> str:
        nonlocal runs
        runs += 1
        await asyncio.sleep(4)
        return "done"

    worker = local_worker(handler, worker_config(gateway, own_broker, tmp_path))
    await worker.ready()
    assert (await (await gateway.invoke()).answer()).body == b"done"
    assert runs == 1
    assert (await gateway.consumer())["num_redelivered"] == 0
    await worker.stop()
    await gateway.stop()


async def test_a_request_that_cannot_be_signalled_for_long_is_given_up_but_not_lost(
    own_broker: NatsServer, tmp_path: Path
) -> None:
    """Ten signals in a row fail (here every 0.5 s): the handler is stopped, the broker delivers again."""
    gateway = PeerGateway(own_broker.url, ack_wait=1.5)
    await gateway.start()
    attempts: list[int] = []
    stopped: list[int] = []

    async def handler(request: Request) -> str:
        attempts.append(request.attempt)
        if request.attempt == 1:
            try:
                await asyncio.sleep(60)
            finally:
                stopped.append(1)
        return "second time"

    worker = local_worker(handler, worker_config(gateway, own_broker, tmp_path))
    await worker.ready()
    call = await gateway.invoke()
    await eventually(lambda: attempts == [1], "in work")
    own_broker.kill()
    await eventually(lambda: stopped == [1], "given up")
    own_broker.start()
    assert (await call.answer()).body == b"second time"
    assert attempts == [1, 2]
    await worker.stop()
    await gateway.stop()
