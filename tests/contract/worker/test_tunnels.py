"""Sessions at the worker: dialling back, raw bytes to the function's port, records, reconnects, ends.

See protocol.md, section 7.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import nats.errors
import pytest

from nvcf_proto import settings
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.gateway import PeerGateway
from tests.support.peers.proxy import PeerProxy, peer_proxy
from tests.support.waiting import eventually


class EchoServer:
    """The function's own server: gives back every byte; `close` closes what it has."""

    def __init__(self) -> None:
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.writers.append(writer)
        self.open += 1
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()

    def close(self) -> None:
        """The function closes its connections."""
        for writer in self.writers:
            writer.close()


@pytest.fixture
async def function() -> AsyncIterator[EchoServer]:
    echo = EchoServer()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    echo.close()
    server.close()


@pytest.fixture
async def proxy(gateway: PeerGateway) -> AsyncIterator[PeerProxy]:
    async with peer_proxy(gateway) as running:
        yield running


async def never_called(request: Any) -> None:
    """Sessions do not reach the handler."""
    raise AssertionError("a session came to the handler")


async def settled(gateway: PeerGateway) -> bool:
    """Whether nothing is queued or in flight."""
    return await gateway.queued() == 0


async def test_the_worker_dials_and_passes_raw_bytes(
    gateway: PeerGateway, proxy: PeerProxy, function: EchoServer, start_worker: StartWorker
) -> None:
    start_worker(never_called, session_port=function.port)
    request_id = await proxy.queue(token="the-token")
    tunnel = await proxy.tunnel()
    assert tunnel.line == "CONNECT /v1/proxy HTTP/1.1"
    assert tunnel.headers["authorization"] == "Bearer the-token"
    assert tunnel.headers["x-request-id"] == request_id
    assert tunnel.headers["host"] == proxy.url.split("/")[2]
    data = bytes(range(256)) * 4096
    assert await tunnel.echo(data) == data
    assert await gateway.queued() == 1, "acknowledged at its end only"
    function.close()
    await tunnel.ended()
    await eventually(lambda: settled(gateway), "acknowledged")


@pytest.mark.parametrize("status", [401, 400, 500, 503])
async def test_failed_dials_are_tried_again(
    gateway: PeerGateway, proxy: PeerProxy, function: EchoServer, start_worker: StartWorker, status: int
) -> None:
    proxy.answers = [status] * 5
    start_worker(never_called, session_port=function.port)
    await proxy.queue()
    tunnel = await proxy.tunnel()
    assert await tunnel.echo(b"x") == b"x"
    assert len(proxy.dials) == 6
    function.close()
    await tunnel.ended()


async def test_dials_are_given_up_after_five_retries(
    gateway: PeerGateway, proxy: PeerProxy, function: EchoServer, start_worker: StartWorker
) -> None:
    proxy.answers = [503] * 20
    start_worker(never_called, session_port=function.port)
    await proxy.queue()
    await eventually(lambda: settled(gateway), "acknowledged")
    assert len(proxy.dials) == 6
    await eventually(lambda: function.open == 0, "the function's connection is closed")


async def test_a_forbidden_dial_is_final(
    gateway: PeerGateway, proxy: PeerProxy, function: EchoServer, start_worker: StartWorker
) -> None:
    proxy.answers = [403] * 20
    start_worker(never_called, session_port=function.port)
    await proxy.queue()
    await eventually(lambda: settled(gateway), "acknowledged")
    assert len(proxy.dials) == 1


async def test_the_session_is_registered_and_purged(
    gateway: PeerGateway, proxy: PeerProxy, function: EchoServer, start_worker: StartWorker
) -> None:
    start_worker(never_called, session_port=function.port)
    request_id = await proxy.queue()
    tunnel = await proxy.tunnel()
    await tunnel.echo(b"x")
    record = await proxy.record(request_id)
    assert record is not None
    assert (record.functionId, record.functionVersionId) == (gateway.function_id, gateway.version_id)
    assert record.invokerNcaId == "account-1"
    function.close()
    await tunnel.ended()

    async def purged() -> bool:
        return await proxy.record(request_id) is None

    await eventually(purged, "the record is gone")


async def test_a_gateway_with_a_subject_of_its_own_is_asked_for_no_purge(
    gateway: PeerGateway, proxy: PeerProxy, function: EchoServer, start_worker: StartWorker
) -> None:
    start_worker(never_called, session_port=function.port)
    subject = f"stateful_session.reconnect.{gateway.version_id}.own"
    request_id = await proxy.queue(headers={"Nvcf-Reconnect-Subject": subject})
    tunnel = await proxy.tunnel()
    await tunnel.echo(b"x")
    with pytest.raises(nats.errors.NoRespondersError):
        await proxy.reconnect(request_id, "stolen")
    await proxy.reconnect(request_id, "second", subject)
    second = await proxy.tunnel()
    assert second.headers["authorization"] == "Bearer second"
    await second.echo(b"x")
    function.close()
    await tunnel.ended()
    await second.ended()

    async def emptied() -> bool:
        record = await proxy.record(request_id)
        return record is None or not record.functionVersionId

    await eventually(emptied, "the record says nothing any more")


async def test_a_caller_that_was_cut_off_may_come_back(
    gateway: PeerGateway, proxy: PeerProxy, function: EchoServer, start_worker: StartWorker
) -> None:
    start_worker(never_called, session_port=function.port, concurrency=1)
    request_id = await proxy.queue()
    tunnel = await proxy.tunnel()
    await tunnel.echo(b"x")
    tunnel.cut()
    await eventually(lambda: function.open == 0, "the function sees it")
    await proxy.reconnect(request_id, "second")
    back = await proxy.tunnel()
    assert back.headers["authorization"] == "Bearer second"
    assert back.headers["x-request-id"] == request_id
    assert await back.echo(b"again") == b"again"
    assert await gateway.queued() == 1
    # Orderly now: by a cancel, before or after the tunnel's end.
    await proxy.cancel(request_id)
    back.writer.close()
    await eventually(lambda: settled(gateway), "acknowledged")
    with pytest.raises(nats.errors.NoRespondersError):
        await proxy.reconnect(request_id, "third")


async def test_a_cancel_leaves_other_tunnels_of_the_session_alone(
    gateway: PeerGateway, proxy: PeerProxy, function: EchoServer, start_worker: StartWorker
) -> None:
    start_worker(never_called, session_port=function.port)
    request_id = await proxy.queue()
    first = await proxy.tunnel()
    await first.echo(b"1")
    await proxy.reconnect(request_id, "second")
    second = await proxy.tunnel()
    await second.echo(b"2")
    await proxy.cancel(request_id)
    first.writer.close()
    await eventually(lambda: function.open == 1, "the first tunnel has ended")
    assert await second.echo(b"still") == b"still"
    # That good-bye was the first tunnel's: the second caller may still come back.
    second.cut()
    await eventually(lambda: function.open == 0, "the second tunnel has ended")
    await proxy.reconnect(request_id, "third")
    third = await proxy.tunnel()
    assert await third.echo(b"back") == b"back"
    third.writer.close()
    await proxy.cancel(request_id)
    await eventually(lambda: settled(gateway), "acknowledged")


async def test_the_wait_for_a_caller_ends(
    gateway: PeerGateway,
    proxy: PeerProxy,
    function: EchoServer,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert settings.SESSION_RECONNECT_WAIT == 30.0
    monkeypatch.setattr(settings, "SESSION_RECONNECT_WAIT", 0.3)
    start_worker(never_called, session_port=function.port)
    await proxy.queue()
    tunnel = await proxy.tunnel()
    await tunnel.echo(b"x")
    tunnel.cut()
    await eventually(lambda: settled(gateway), "acknowledged")


async def test_a_cancel_before_the_link_ends_it(
    gateway: PeerGateway, proxy: PeerProxy, start_worker: StartWorker
) -> None:
    # Nothing listens on port 1: the worker still tries when the cancel comes.
    start_worker(never_called, session_port=1)
    request_id = await proxy.queue()

    async def in_work() -> bool:
        return bool((await gateway.consumer())["num_ack_pending"])

    await eventually(in_work, "the worker has it")
    await proxy.cancel(request_id)
    await eventually(lambda: settled(gateway), "acknowledged")
    assert not proxy.dials


async def test_a_function_without_a_port_is_told_to_the_gateway(
    gateway: PeerGateway, proxy: PeerProxy, start_worker: StartWorker
) -> None:
    start_worker(never_called)
    await proxy.queue()
    tunnel = await proxy.tunnel()
    assert tunnel.headers["nvcf-tunnel-error"].startswith("501 ")
    assert "session_port" in tunnel.headers["nvcf-tunnel-error"]
    await eventually(lambda: settled(gateway), "acknowledged")


async def test_a_long_session_is_kept_from_redelivery(
    broker: Any, function: EchoServer, tmp_path: Any
) -> None:
    from tests.support.platform.workers import local_worker, worker_config

    gateway = PeerGateway(broker.url, ack_wait=2.0)
    await gateway.start()
    worker = local_worker(never_called, worker_config(gateway, broker, tmp_path, session_port=function.port))
    try:
        async with peer_proxy(gateway) as proxy:
            request_id = await proxy.queue()
            tunnel = await proxy.tunnel()
            loop = asyncio.get_running_loop()
            until = loop.time() + 5
            while loop.time() < until:
                assert await tunnel.echo(b"x") == b"x"
                await asyncio.sleep(0.1)
            assert (await gateway.consumer())["num_redelivered"] == 0
            assert len(proxy.dials) == 1
            await proxy.cancel(request_id)
            tunnel.writer.close()
            await eventually(lambda: settled(gateway), "acknowledged")
    finally:
        await worker.stop()
        await gateway.stop()


async def test_leaving_cuts_a_session_after_the_grace_period(
    gateway: PeerGateway, proxy: PeerProxy, function: EchoServer, start_worker: StartWorker
) -> None:
    worker = start_worker(never_called, session_port=function.port, grace_seconds=0.5)
    await proxy.queue()
    tunnel = await proxy.tunnel()
    await tunnel.echo(b"x")
    await worker.stop()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await tunnel.echo(b"x")
    # Nobody else could go on with it.
    assert await settled(gateway)


async def test_a_request_without_a_usable_proxy_is_dropped(
    gateway: PeerGateway, proxy: PeerProxy, function: EchoServer, start_worker: StartWorker
) -> None:
    start_worker(never_called, session_port=function.port)
    message = proxy.work("a0a0a0a0-0000-4000-8000-000000000000", "x")
    del message.statefulConfig.connectionConfigs[1]
    await gateway.publish_raw(message.SerializeToString())
    await eventually(lambda: settled(gateway), "dropped")
