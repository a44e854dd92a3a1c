"""Health endpoints `/v1/health/{live,ready,drained}` (protocol.md, section 5.3), and `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from nvcf_proto import settings
from nvcf_proto.environment import HEALTH_PORT, NVCF_METRICS_ADDRESS
from nvcf_worker.errors import ConfigurationError

Page = Callable[[str], tuple[bytes, str]]
METRICS_OFF = f"metrics are off; set {NVCF_METRICS_ADDRESS}=health to turn them on\n"


@asynccontextmanager
async def health_server(
    port: int, ready: Callable[[], bool], page: Page | None = None, *, drained: asyncio.Event
) -> AsyncIterator[None]:
    """Serve health checks on all interfaces while the context is open; with port 0 there is no server.

    drained: set when no request is left after a drain. Then a waiting preStop hook of Kubernetes is answered.
    page: returns the text and media type of `/metrics` for an Accept header; it may block.
    Raises ConfigurationError if the port cannot be used.
    """
    if port == 0:
        yield
        return

    async def live(_: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def readiness(_: web.Request) -> web.Response:
        if ready():
            return web.json_response({"status": "ready"})
        return web.json_response({"status": "not ready"}, status=503)

    async def wait_drained(_: web.Request) -> web.Response:
        await drained.wait()
        return web.json_response({"status": "drained"})

    async def metrics(request: web.Request) -> web.Response:
        if page is None:
            raise web.HTTPNotFound(text=METRICS_OFF)
        body, media_type = await asyncio.to_thread(page, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": media_type})

    application = web.Application()
    application.router.add_get(settings.HEALTH_LIVE_PATH, live)
    application.router.add_get(settings.HEALTH_READY_PATH, readiness)
    application.router.add_get(settings.DRAINED_PATH, wait_drained)
    application.router.add_get("/metrics", metrics)
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, port=port).start()
        except OSError as error:
            raise ConfigurationError(
                f"the health port {port} cannot be used ({error.strerror}); set {HEALTH_PORT} to a free "
                "port, or to 0 for no health server"
            ) from error
        yield
    finally:
        # Whoever waits is answered, even if the worker leaves without a drain: the cleanup would wait for it.
        drained.set()
        await runner.cleanup()
