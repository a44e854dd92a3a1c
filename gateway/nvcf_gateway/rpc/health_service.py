"""`grpc.health.v1.Health`, which invocation services and load balancers ask: does this gateway serve?

Source of the messages: the gRPC health checking protocol. A request names a service (field 1); an answer
holds a status (field 1): 1 serving, 2 not serving.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"
LOOK_EVERY = 1.0

Context = grpc.aio.ServicerContext


class Health:
    """Says of all services of the port what `is_healthy` says."""

    def __init__(self, is_healthy: Callable[[], bool]) -> None:
        self._is_healthy = is_healthy

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it on a gRPC server that has not been started."""
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),)
        )

    def _status(self) -> bytes:
        return _SERVING if self._is_healthy() else _NOT_SERVING

    async def _check(self, request: bytes, context: Context[Any, Any]) -> bytes:
        return self._status()

    async def _watch(self, request: bytes, context: Context[Any, Any]) -> AsyncIterator[bytes]:
        said = b""
        while True:
            status = self._status()
            if status != said:
                yield status
                said = status
            await asyncio.sleep(LOOK_EVERY)
