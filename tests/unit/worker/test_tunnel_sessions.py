"""Sessions that are cancelled early, and the renewal of their records."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from nvcf_proto import settings
from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.function.cancellation import CancelScope
from nvcf_worker.message import Work, parse_work
from nvcf_worker.sessions.tunnel import Tunnels, TunnelSession
from tests.support.waiting import eventually


async def listener(
    accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> tuple[asyncio.Server, int]:
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


def session_request(port: int) -> Work:
    message = nvcf_pb2.WorkerInvokeFunctionRequest(requestId=new_id())
    http1 = message.statefulConfig.connectionConfigs.add().http1Config
    http1.proxyURI, http1.proxyAuthorizationToken = f"http://127.0.0.1:{port}", "token"
    return parse_work(message.SerializeToString(), "", None, region="r", now=0.0)


async def test_a_session_that_is_cancelled_while_it_dials_leaves_the_function_alone() -> None:
    """Its connection would stay open as long as the worker lives: the caller left before it was there."""
    dialled, left = asyncio.Event(), asyncio.Event()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        dialled.set()
        await reader.read()
        writer.close()

    async def function(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        left.set()
        writer.close()

    (proxy_server, proxy_port), (server, port) = await listener(proxy), await listener(function)
    running = asyncio.create_task(
        Tunnels(("127.0.0.1", port), new_id(), new_id(), lambda: None).run(
            session_request(proxy_port), CancelScope()
        )
    )
    async with asyncio.timeout(20):
        await dialled.wait()
    running.cancel()
    await asyncio.wait({running})
    await eventually(left.is_set, "the function's server saw it leave")
    proxy_server.close()
    server.close()


async def test_a_record_that_is_renewed_just_when_its_session_ends_does_not_hold_the_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library's request swallows a cancellation that comes together with the response."""
    monkeypatch.setattr(settings, "SESSION_REGISTER_INTERVAL", 0.0)
    connection: Any = object()
    session = TunnelSession(
        session_request(1), CancelScope(), ("127.0.0.1", 1), new_id(), new_id(), lambda: connection
    )
    asked = asyncio.Event()

    class Record:
        async def register(self, _: Any) -> None:
            if asked.is_set():
                await asyncio.Event().wait()
            asked.set()
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                return

    record: Any = Record()
    session.record = record
    renewing = asyncio.create_task(session._renew())
    await asked.wait()
    renewing.cancel()
    done, _ = await asyncio.wait({renewing}, timeout=5)
    renewing.cancel()
    assert done
