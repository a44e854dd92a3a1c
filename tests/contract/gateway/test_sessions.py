"""Sessions at the gateway: gRPC and WebSocket callers, links, reconnects, against a peer's worker.

See protocol.md, section 7.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from nats.aio.msg import Msg

from nvcf_proto.compute import wake_subject
from tests.functions.grpc_service import start_service
from tests.support.http.authority import Authority
from tests.support.http.session_callers import Channel, grpc_channel, routing
from tests.support.peers.tunnel import copy, dial
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, eventually, running_platform
from tests.support.platform.session_function import grpc_function

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLAGS = ("--sessions", "127.0.0.1:0")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Broker and two gateways with a sessions port."""
    directory: Path = tmp_path_factory.mktemp("sessions")
    async with running_platform(directory, gateways=2, flags=FLAGS) as running:
        yield running


REFUSALS = [
    ({"authorization": None}, 401, grpc.StatusCode.UNAUTHENTICATED),
    ({"authorization": "Bearer nvcf-wrong"}, 401, grpc.StatusCode.UNAUTHENTICATED),
    ({"authorization": "key:list"}, 403, grpc.StatusCode.PERMISSION_DENIED),
    ({"authorization": "key:foreign"}, 404, grpc.StatusCode.NOT_FOUND),
    ({"function-id": None}, 400, grpc.StatusCode.INVALID_ARGUMENT),
    ({"function-id": "no-uuid"}, 400, grpc.StatusCode.INVALID_ARGUMENT),
    ({"function-version-id": "a0a0a0a0-0000-4000-8000-000000000000"}, 404, grpc.StatusCode.NOT_FOUND),
    ({"nvcf-request-id": "a0a0a0a0-0000-4000-8000-000000000000"}, 404, grpc.StatusCode.NOT_FOUND),
    ({"nvcf-request-id": "no-uuid"}, 400, grpc.StatusCode.INVALID_ARGUMENT),
]


@pytest.mark.parametrize(("changes", "status", "code"), REFUSALS)
async def test_refusals_take_the_form_of_the_call(
    platform: Platform, changes: dict[str, str | None], status: int, code: grpc.StatusCode
) -> None:
    version = await platform.deployed_version()
    headers = dict(routing(platform, version))
    for name, value in changes.items():
        if value is None:
            del headers[name]
        elif value.startswith("key:"):
            headers[name] = f"Bearer {platform.keys[value[4:]]}"
        else:
            headers[name] = value
    async with grpc_channel(platform.gateway, tuple(headers.items())) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.call("Echo", b"x")
        assert raised.value.code() is code
        assert raised.value.details()
    url = f"http://{platform.gateway.sessions}/"
    async with platform.session.post(url, data=b"x" * 100, headers=headers) as response:
        assert response.status == status
        assert response.content_type == "application/problem+json"
        assert (await response.json())["status"] == status
    async with platform.session.head(url, headers=headers) as response:
        assert (response.status, await response.read()) == (status, b"")
    # HTTP 200 for gRPC over HTTP/1.1, too.
    headers["content-type"] = "application/grpc-web+proto"
    async with platform.session.post(url, headers=headers) as response:
        assert response.status == 200
        assert response.headers["grpc-status"] == str(code.value[0])


@pytest.mark.slow
async def test_no_worker_within_30_seconds(platform: Platform) -> None:
    version = await platform.deployed_version()
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with grpc_channel(platform.gateway, routing(platform, version)) as channel:

        async def by_http() -> int:
            url = f"http://{platform.gateway.sessions}/"
            async with platform.session.get(url, headers=dict(routing(platform, version))) as response:
                return response.status

        http = asyncio.create_task(by_http())
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.call("Echo", b"x")
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "no worker" in str(raised.value.details())
        assert await http == 504
    assert 29 < loop.time() - started < 45
    await platform.queue_is_empty(version)


async def test_a_worker_that_leaves_is_replaced_by_the_next_call(platform: Platform) -> None:
    async with grpc_function(platform) as (version, service, tunnel):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            call = channel.call("Hang")
            await eventually(lambda: service.running == 1, "the function runs")
            await tunnel.forget_sessions()
            tunnel.cut()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await channel.call("Echo", b"again") == b"again"
        assert len(tunnel.works) == 2


async def test_a_tunnel_that_breaks_is_requested_again(platform: Platform) -> None:
    async with grpc_function(platform) as (version, _service, tunnel):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            await channel.call("Echo", b"1")
            tunnel.cut()
            answer = b""
            while answer != b"2":
                with contextlib.suppress(grpc.aio.AioRpcError):
                    answer = await channel.call("Echo", b"2")
        assert len(tunnel.works) == 1
        assert tunnel.statuses == [200, 200]


async def test_a_caller_comes_back_to_its_session_through_another_replica(platform: Platform) -> None:
    async with grpc_function(platform) as (version, _service, tunnel):
        metadata = routing(platform, version)
        async with grpc_channel(platform.gateways[0], metadata) as channel:
            call = channel.call("Echo", b"1")
            await call
            request_id = dict(await call.initial_metadata())["nvcf-reqid"]
            back = (*metadata, ("nvcf-request-id", str(request_id)))
            async with grpc_channel(platform.gateways[1], back) as other:
                again = other.call("Echo", b"2")
                assert await again == b"2"
                assert dict(await again.initial_metadata())["nvcf-reqid"] == request_id
            # On its own connection the id leads to the session that is there.
            await Channel(channel.channel, back).call("Echo", b"3")
        assert len(tunnel.works) == 1
        assert tunnel.statuses == [200, 200]


async def test_a_foreign_account_cannot_come_back(platform: Platform) -> None:
    async with grpc_function(platform) as (version, _service, _tunnel):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            call = channel.call("Echo", b"1")
            await call
            request_id = str(dict(await call.initial_metadata())["nvcf-reqid"])
            other = await platform.deployed_version()
            for metadata in (routing(platform, version, key="foreign"), routing(platform, other)):
                stolen = Channel(channel.channel, (*metadata, ("nvcf-request-id", request_id)))
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stolen.call("Echo", b"2")
                assert raised.value.code() in (
                    grpc.StatusCode.PERMISSION_DENIED,
                    grpc.StatusCode.NOT_FOUND,
                )


async def test_the_tunnel_endpoint_checks_everything(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            call = channel.call("Echo", b"x")
            request = (await worker.pull()).request
            other = "a0a0a0a0-0000-4000-8000-000000000000"
            cases = [
                (401, {"drop": ("Authorization",)}),
                (400, {"drop": ("X-Request-ID",)}),
                (400, {"request_id": "no-uuid"}),
                (403, {"request_id": other}),
                (403, {"token": "unknown"}),
                (404, {"path": "/v1/other"}),
                (405, {"method": "POST"}),
            ]
            for status, changes in cases:
                answered, _, (_, writer) = await dial(request, **changes)  # type: ignore[arg-type]
                writer.close()
                assert answered == status, changes
            # None of that used the token up.
            answered, head, (_, writer) = await dial(request)
            assert answered == 200
            assert b"ontent-" not in head
            answered, _, (_, second) = await dial(request)
            second.close()
            assert answered == 403, "a token is good once"
            writer.close()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_can_report_why_it_cannot_serve(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            call = channel.call("Echo", b"x")
            request = (await worker.pull()).request
            _, _, (_, writer) = await dial(request, extra={"Nvcf-Tunnel-Error": "501 no port"})
            writer.close()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert raised.value.details() == "no port"


async def test_only_an_orderly_end_is_reported_to_the_worker(platform: Platform) -> None:
    async with grpc_function(platform) as (version, service, tunnel):
        cancelled: list[str] = []

        async def on_cancel(message: Msg) -> None:
            cancelled.append(message.data.decode())

        await tunnel.worker.client.subscribe(f"nvcf.cancel.{version.id}", cb=on_cancel)
        await tunnel.worker.client.flush()
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            await channel.call("Echo", b"1")
        await eventually(lambda: len(cancelled) == 1, "the worker heard of the end")
        assert cancelled == [tunnel.works[0].request.requestId]
        # A connection cut in the middle of a call may come back.
        async with cutter(platform.gateway.sessions) as (address, cut):
            gateway = dataclasses.replace(platform.gateway, sessions=address)
            async with grpc_channel(gateway, routing(platform, version)) as channel:
                call = channel.call("Hang")
                await eventually(lambda: service.running == 1, "the function runs")
                cut()
                with pytest.raises(grpc.aio.AioRpcError):
                    await call
        await eventually(lambda: service.running == 0, "the link is gone")
        assert len(cancelled) == 1


@contextlib.asynccontextmanager
async def cutter(address: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """A relay in front of `address` that can cut what goes through it."""
    host, port = address.split(":")
    writers: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, far_writer))
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)

    def cut() -> None:
        for writer in writers:
            writer.transport.abort()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", cut
    finally:
        server.close()
        cut()


async def test_the_first_bytes_are_bounded_and_garbage_is_refused(platform: Platform) -> None:
    host, port = platform.gateway.sessions.split(":")
    for garbage in (b"GARBAGE\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(8) + b"\x07"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        async with asyncio.timeout(20):
            while await reader.read(65536):
                pass
        writer.close()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000)
    async with asyncio.timeout(20):
        assert (await reader.read(65536)).startswith(b"HTTP/1.1 431 ")
    writer.close()


async def test_a_worker_may_listen_for_reconnects_of_its_own_version_only(platform: Platform) -> None:
    version, other = await platform.deployed_version(), await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        refused: list[str] = []

        async def on_error(error: Exception) -> None:
            refused.append(str(error).lower())

        worker.client._error_cb = on_error
        await worker.client.subscribe(f"stateful_session.reconnect.{version.id}.any")
        await worker.client.flush()
        assert not refused
        foreign = [
            "stateful_session.reconnect.>",
            "stateful_session.reconnect.*",
            "stateful_session.reconnect.a0a0a0a0-0000-4000-8000-000000000000",
            f"stateful_session.reconnect.{other.id}.*",
            f"stateful_session.lookup.local.{version.id}.*",
        ]
        for subject in foreign:
            await worker.client.subscribe(subject)
        await worker.client.publish(f"stateful_session.lookup.local.{other.id}.x", b"")
        await worker.client.publish("$JS.API.STREAM.PURGE.stateful_session_lookup_local", b"")
        await worker.client.flush()
        await eventually(lambda: len(refused) == len(foreign) + 2, "all are refused")
        assert all("permissions violation" in text for text in refused)


async def test_sessions_over_tls_with_alpn(platform: Platform, tmp_path: Path) -> None:
    authority, chain, key = Authority(tmp_path), tmp_path / "chain.pem", tmp_path / "key.pem"
    authority.issue(chain, key, ec.generate_private_key(ec.SECP256R1()))
    gateway = await platform.start_gateway(*FLAGS, "--tls-cert", str(chain), "--tls-key", str(key))
    version = await platform.deployed_version()
    service, server, port = await start_service()
    metadata = routing(platform, version)
    async with peer_worker(platform, version) as worker:
        credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
        async with grpc.aio.secure_channel(gateway.sessions, credentials) as secure:
            call = Channel(secure, metadata).call("Echo", b"private")
            request = (await worker.pull()).request
            assert request.statefulConfig.connectionConfigs[0].http1Config.proxyURI.startswith("https://")
            status, _, link = await dial(request, tls=authority.file)
            assert status == 200
            function = await asyncio.open_connection("127.0.0.1", port)
            ways = [
                asyncio.create_task(copy(link[0], function[1])),
                asyncio.create_task(copy(function[0], link[1])),
            ]
            assert await call == b"private"
            del call
            gc.collect()
        for way in ways:
            way.cancel()
        link[1].close()
        function[1].close()
    assert "authorization" not in service.metadata[0]
    context = ssl.create_default_context(cafile=authority.file)
    context.set_alpn_protocols(["http/1.1"])
    async with platform.session.get(f"https://{gateway.sessions}/", ssl=context) as response:
        assert response.status == 400
    await server.stop(0)


async def test_a_session_that_meets_no_instance_wakes_the_autoscaler(platform: Platform) -> None:
    version = await platform.deployed_version()
    client = await platform.broker_client()
    try:
        wakes = await client.subscribe(wake_subject(version.id))
        await client.flush()
        async with peer_worker(platform, version) as worker:
            async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
                call = channel.call("Echo", b"")
                work = await worker.pull()
                wake = await wakes.next_msg(timeout=10)
                assert wake.data.decode() == work.request.requestId
                call.cancel()
            await work.ack()
    finally:
        await client.close()
