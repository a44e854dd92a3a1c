"""Stateful sessions of one gateway replica, put together."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

from aiohttp import web

from nvcf_broker.connection import BrokerClient
from nvcf_broker.errors import BrokerError
from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.access.authorization import Authenticator, Authorizer
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.http.tls import server_context
from nvcf_gateway.owner import TaskOwner
from nvcf_gateway.queue.demand import Demand
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.ratelimit.limiter import RateLimiter
from nvcf_gateway.sessions.accept import Listener
from nvcf_gateway.sessions.listener import CallerDoor
from nvcf_gateway.sessions.opening import SessionOpener
from nvcf_gateway.sessions.proxy import ProxyDoor
from nvcf_gateway.sessions.session_records import SessionLookup
from nvcf_gateway.sessions.upgrade import HttpUpgrade
from nvcf_gateway.sessions.worker_links import LinkTable
from nvcf_gateway.telemetry.sessions import SessionTelemetry
from nvcf_proto.settings import TUNNEL_PATH

_log = logging.getLogger(__name__)

SHUTDOWN_GRACE = 10.0
_ANY_PORT = ("127.0.0.1", 0)


class Sessions:
    """The tunnels of this replica. `address` is the callers' `host:port` once started, None without one."""

    def __init__(
        self,
        config: GatewayConfig,
        authenticator: Authenticator,
        authorizer: Authorizer,
        queue: RequestQueue,
        client: BrokerClient,
        requests: ReplyInbox,
        owner: TaskOwner,
        limiter: RateLimiter,
        demand: Demand,
        telemetry: SessionTelemetry,
    ) -> None:
        self._config = config
        self._lookup = SessionLookup(client, requests, config)
        links = LinkTable()
        self._opener = SessionOpener(
            authenticator,
            authorizer,
            queue,
            self._lookup,
            links,
            owner,
            lambda: self._proxy_url,
            limiter,
            demand,
            telemetry,
        )
        self._proxy = Listener(ProxyDoor(links).serve)
        self._door = CallerDoor(self._opener)
        self._callers = Listener(self._door.serve)
        self._upgrade = HttpUpgrade(self._opener)
        self._proxy_url = ""
        self.address: str | None = None

    async def start(self, stack: AsyncExitStack) -> None:
        """Open the doors until `stack` is closed. Raises SetupError."""
        config = self._config
        try:
            await self._lookup.ensure()
        except BrokerError as error:
            # Sessions work without it; only coming back to one does not.
            _log.error("%s", error)
        bound = await self._proxy.start(
            config.session_proxy or _ANY_PORT,
            what="workers' links",
            flag="--session-proxy",
            tls=server_context(config),
        )
        stack.push_async_callback(self._proxy.stop, 0.0)
        scheme = "https" if config.tls_cert is not None else "http"
        self._proxy_url = config.session_proxy_url or f"{scheme}://{bound}{TUNNEL_PATH}"
        if config.sessions is not None:
            self.address = await self._callers.start(
                config.sessions,
                what="sessions",
                flag="--sessions",
                tls=server_context(config, alpn=("h2", "http/1.1")),
            )
            stack.push_async_callback(self._leave)

    async def _leave(self) -> None:
        self._callers.stop_accepting()
        self._door.leave()
        await self._callers.stop(SHUTDOWN_GRACE)

    def takes(self, request: web.BaseRequest) -> bool:
        """Whether a request on the ordinary HTTP port goes through a tunnel."""
        return self._upgrade.takes(request)

    async def upgrade(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve such a request. Raises HttpProblem."""
        return await self._upgrade.serve(request)
