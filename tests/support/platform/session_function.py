"""A version whose worker serves sessions from a real gRPC server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from tests.functions.grpc_service import Service, start_service
from tests.support.peers.tunnel import TunnelWorker, tunnel_worker
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, Version


@contextlib.asynccontextmanager
async def grpc_function(
    platform: Platform, **options: int
) -> AsyncIterator[tuple[Version, Service, TunnelWorker]]:
    """Deploy a version whose worker serves sessions from a real gRPC server."""
    version = await platform.deployed_version()
    service, server, port = await start_service(**options)
    try:
        async with peer_worker(platform, version) as worker, tunnel_worker(worker, port) as tunnel:
            yield version, service, tunnel
    finally:
        await server.stop(0)
