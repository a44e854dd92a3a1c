"""B7: what is open ends when the right to it ends: a revoked key, a share taken back, an undeployment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.functions.grpc_service import start_service
from tests.functions.websocket_service import start_websockets
from tests.support.http.session_callers import grpc_channel
from tests.support.peers.tunnel import tunnel_worker
from tests.support.peers.worker import PeerWorker, peer_worker
from tests.support.platform.gateways import Platform, Version, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")
Ending = Callable[[Platform, Version, str], Awaitable[object]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Broker and one gateway with a sessions port."""
    directory: Path = tmp_path_factory.mktemp("rights")
    async with running_platform(directory, flags=("--sessions", "127.0.0.1:0")) as running:
        yield running


async def guest(platform: Platform, version: Version) -> tuple[str, dict[str, str]]:
    """Share the function; return the id of a new key of the guest, and its routing headers."""
    path = f"/v2/nvcf/functions/{version.function_id}/authorizations"
    await platform.call("PUT", path, {"authorizedParties": [{"ncaId": "account-two"}]})
    made = await platform.call("POST", "/v2/nvcf/keys", {"scopes": ["invoke"]}, key="foreign")
    key = made["key"]["id"]
    return key, {"authorization": f"Bearer {made['key']['key']}", "function-id": version.function_id}


async def revoke(platform: Platform, version: Version, key: str) -> None:
    await platform.call("DELETE", f"/v2/nvcf/keys/{key}", key="foreign", expect=204)


async def unshare(platform: Platform, version: Version, key: str) -> None:
    await platform.call("DELETE", f"/v2/nvcf/functions/{version.function_id}/authorizations")


async def undeploy(platform: Platform, version: Version, key: str) -> None:
    path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    await platform.call("DELETE", path)


@pytest.mark.parametrize("ending", [revoke, unshare, undeploy])
async def test_b07_open_sessions_end(platform: Platform, ending: Ending) -> None:
    """A WebSocket on both ports, and a gRPC stream; the owner's own sessions go on unless undeployed."""
    version, grpc_version = await platform.deployed_version(), await platform.deployed_version()
    _, server, port = await start_websockets()
    _, grpc_server, grpc_port = await start_service()
    key, headers = await guest(platform, version)
    grpc_key, grpc_headers = await guest(platform, grpc_version)
    own = {**platform.authorization(), "function-id": version.function_id}
    http, sessions = platform.gateway.url.replace("http", "ws"), f"ws://{platform.gateway.sessions}"
    try:
        async with (
            peer_worker(platform, version) as worker,
            tunnel_worker(worker, port),
            peer_worker(platform, grpc_version) as second,
            tunnel_worker(second, grpc_port),
            connect(http, additional_headers=headers) as one,
            connect(sessions, additional_headers=headers) as two,
            connect(http, additional_headers=own) as owners,
            grpc_channel(platform.gateway, tuple(grpc_headers.items())) as channel,
        ):
            call = channel.both("Chat")
            await call.write(b"hello")
            assert await call.read() == b"re: hello"
            for socket in (one, two, owners):
                await socket.send("hello")
                assert await socket.recv() == "hello"
            await ending(platform, version, key)
            await ending(platform, grpc_version, grpc_key)
            for socket in (one, two):
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(socket.recv(), 30)
            with pytest.raises(grpc.aio.AioRpcError):
                await asyncio.wait_for(call.read(), 30)
            if ending is not undeploy:
                await owners.send("still here")
                assert await owners.recv() == "still here"
    finally:
        server.close()
        await grpc_server.stop(0)


async def endless(work: Any) -> None:
    """Answer with events that never end."""

    async def events() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        while True:
            yield b"data: x\n\n"
            await asyncio.sleep(0.1)

    await work.post(events())


@pytest.mark.parametrize("ending", [revoke, unshare])
async def test_b07_waiting_calls_polls_and_streams_end(platform: Platform, ending: Ending) -> None:
    version = await platform.deployed_version()
    key, headers = await guest(platform, version)
    url = platform.gateway.url

    async def waited(method: str, path: str, **more: str) -> tuple[int, bytes]:
        async with platform.session.request(method, url + path, headers={**headers, **more}) as response:
            return response.status, await response.read()

    async def poll(worker: PeerWorker) -> asyncio.Task[tuple[int, bytes]]:
        path = version.pexec
        del headers["function-id"]
        async with platform.session.post(
            url + path, headers={**headers, "NVCF-POLL-SECONDS": "1"}, data=b""
        ) as response:
            assert response.status == 202
            request_id = response.headers["nvcf-reqid"]
        status = f"/v2/nvcf/pexec/status/{request_id}"
        return asyncio.create_task(waited("GET", status, **{"NVCF-POLL-SECONDS": "60"}))

    async with peer_worker(platform, version) as worker:
        streaming = asyncio.create_task(waited("GET", "/events"))
        delivering = asyncio.create_task(endless(await worker.pull()))
        polling = await poll(worker)
        calls = [
            asyncio.create_task(waited("POST", path, **{"NVCF-POLL-SECONDS": "60"}))
            for path in (version.pexec,)
        ]
        await asyncio.sleep(1)
        await ending(platform, version, key)
        expected = 401 if ending is revoke else 404
        for task in (polling, *calls):
            status, body = await asyncio.wait_for(task, 30)
            assert status == expected, body
        with pytest.raises(aiohttp.ClientError):
            await asyncio.wait_for(streaming, 30)
        delivering.cancel()
