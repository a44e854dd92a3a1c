"""Answers the kubelet's probes: whether the agent lives, and what it does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from aiohttp import web

from nvcf_agent.errors import AgentError

_SHUTDOWN_SECONDS = 1.0


class State(StrEnum):
    """What the agent does. An agent that waits for the lease of another one is ready to take its place."""

    STARTING = "starting"
    STANDBY = "standby"
    WORKING = "working"
    STALLED = "stalled"
    """It has lost the lease: the API server does not answer. A restart would help nobody."""


_NOT_READY = frozenset((State.STARTING, State.STALLED))


@dataclass
class Health:
    """What the probes are answered."""

    state: State = State.STARTING

    async def live(self, _: web.Request) -> web.Response:
        """Answer 200: the event loop runs."""
        return web.json_response({"state": self.state.value})

    async def ready(self, _: web.Request) -> web.Response:
        """Answer 200 if the agent works or waits for its turn, else 503."""
        return web.json_response({"state": self.state.value}, status=503 if self.state in _NOT_READY else 200)


@asynccontextmanager
async def answering(address: str | None, health: Health) -> AsyncIterator[None]:
    """Answer probes at HOST:PORT inside. Raises `AgentError` if nobody can listen there."""
    if address is None:
        yield
        return
    app = web.Application()
    app.router.add_get("/livez", health.live)
    app.router.add_get("/healthz", health.live)
    app.router.add_get("/readyz", health.ready)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    host, _, port = address.rpartition(":")
    try:
        await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
    except (OSError, ValueError) as error:
        await runner.cleanup()
        raise AgentError(f"--health {address}: {error}") from error
    try:
        yield
    finally:
        await runner.cleanup()
