"""Health endpoints `/v1/health/live` and `/v1/health/ready` (protocol.md section 5)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from nvcf_proto import settings
from nvcf_proto.environment import HEALTH_PORT
from nvcf_worker.errors import ConfigurationError


@asynccontextmanager
async def health_server(port: int, ready: Callable[[], bool]) -> AsyncIterator[None]:
    """Answer health checks on all interfaces while the context lasts; port 0 means no server.

    Raises ConfigurationError when the port cannot be used.
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

    application = web.Application()
    application.router.add_get(settings.HEALTH_LIVE_PATH, live)
    application.router.add_get(settings.HEALTH_READY_PATH, readiness)
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
        await runner.cleanup()
