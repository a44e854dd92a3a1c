"""The session service of one gateway replica, assembled."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

from aiohttp import web

from nvcf_broker.connection import BrokerClient
from nvcf_broker.errors import BrokerError
from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.access.authorization import Authenticator, Authorizer
from nvcf_gateway.access.revocations import Revocations
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.http.tls import server_context
from nvcf_gateway.queue.demand import Demand
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.ratelimit.limiter import RateLimiter
from nvcf_gateway.sessions.listener import Listener, SessionListener
from nvcf_gateway.sessions.opening import SessionOpener
from nvcf_gateway.sessions.session_records import SessionLookup
from nvcf_gateway.sessions.tunnels import TunnelEndpoint, TunnelTable
from nvcf_gateway.sessions.upgrade import HttpUpgrade
from nvcf_gateway.telemetry.sessions import SessionTelemetry
from nvcf_proto.settings import TUNNEL_PATH

_log = logging.getLogger(__name__)

SHUTDOWN_GRACE = 10.0
_ANY_PORT = ("127.0.0.1", 0)


class Sessions:
    """The sessions of this replica. `address` is the callers' `host:port` once started, if there is one."""

    def __init__(
        self,
        config: GatewayConfig,
        authenticator: Authenticator,
        authorizer: Authorizer,
        queue: RequestQueue,
        client: BrokerClient,
        requests: ReplyInbox,
        owner: BackgroundTasks,
        limiter: RateLimiter,
        demand: Demand,
        telemetry: SessionTelemetry,
        revocations: Revocations,
    ) -> None:
        self._config = config
        self._lookup = SessionLookup(client, requests, config)
        tunnels = TunnelTable()
        self._opener = SessionOpener(
            authenticator,
            authorizer,
            queue,
            self._lookup,
            tunnels,
            owner,
            lambda: self._tunnel_url,
            limiter,
            demand,
            telemetry,
            revocations,
            secure=config.tls_cert is not None,
        )
        self._workers = Listener(TunnelEndpoint(tunnels).serve, "tunnels")
        self._callers = SessionListener(self._opener)
        self._upgrade = HttpUpgrade(self._opener)
        self._tunnel_url = ""
        self.address: str | None = None

    async def start(self, stack: AsyncExitStack) -> None:
        """Listen until `stack` is closed. Raises SetupError."""
        config = self._config
        try:
            await self._lookup.ensure()
        except BrokerError as error:
            # Sessions work without it; only returning to one does not.
            _log.error("%s", error)
        bound = await self._workers.start(
            config.session_proxy or _ANY_PORT,
            what="workers' tunnels",
            flag="--session-proxy",
            tls=server_context(config),
        )
        stack.push_async_callback(self._workers.stop, 0.0)
        scheme = "https" if config.tls_cert is not None else "http"
        self._tunnel_url = config.session_proxy_url or f"{scheme}://{bound}{TUNNEL_PATH}"
        if config.sessions is not None:
            self.address = await self._callers.start(
                config.sessions,
                what="sessions",
                flag="--sessions",
                tls=server_context(config, alpn=("h2", "http/1.1")),
            )
            stack.push_async_callback(self._callers.drain, SHUTDOWN_GRACE)

    def takes(self, request: web.BaseRequest) -> bool:
        """Whether a request on the HTTP port goes through a tunnel."""
        return self._upgrade.takes(request)

    async def upgrade(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve a request for which `takes` is true. Raises HttpProblem."""
        return await self._upgrade.serve(request)
