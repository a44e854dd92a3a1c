"""Listen for HTTP until the gateway stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from aiohttp import web

from nvcf_gateway.background import end_task
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import SetupError
from nvcf_gateway.http.absolute import make_request
from nvcf_gateway.http.connections import SERVER_LOG
from nvcf_gateway.http.descriptors import most_connections
from nvcf_gateway.http.listener import BoundedServer
from nvcf_gateway.http.tls import server_context

SHUTDOWN_GRACE = 10.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def serve_http(
    stack: AsyncExitStack,
    config: GatewayConfig,
    handle: Handler,
    ends: Callable[[], Coroutine[Any, Any, None]],
    closing: Callable[[], bool],
) -> str:
    """Listen for HTTP and return the address. `ends` runs while the listener is being closed.

    While `closing` each connection ends with its next response. Raises SetupError.
    """
    web_server = BoundedServer(
        handle,
        most=most_connections("http"),
        request_factory=partial(make_request, closing=closing),
        handler_cancellation=True,
        access_log=None,
        logger=SERVER_LOG,
        # Bodies pass as they are.
        auto_decompress=False,
        keepalive_timeout=config.idle_timeout,
        lingering_time=2.0,
        max_line_size=16 * 1024,
        max_field_size=16 * 1024,
    )
    stack.push_async_callback(end_task, asyncio.create_task(web_server.sweep(), name="silent connections"))
    runner = web.ServerRunner(web_server)
    await runner.setup()

    async def close() -> None:
        ending = asyncio.create_task(ends(), name="ends of waits")
        await runner.cleanup()
        await end_task(ending)

    stack.push_async_callback(close)
    host, port = config.http
    site = web.TCPSite(
        runner, host, port, backlog=1024, shutdown_timeout=SHUTDOWN_GRACE, ssl_context=server_context(config)
    )
    try:
        await site.start()
    except OSError as error:
        raise SetupError(f"cannot listen on {host}:{port} (HTTP): {error.strerror}. Choose --http") from error
    return f"{host}:{runner.addresses[0][1]}"
