"""A WebSocket function, unmodified `websockets` server: `python -m tests.functions.websocket_service 0`."""

from __future__ import annotations

import asyncio
import http
import sys

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

FLOOD_BYTES = 256 * 1024
"""Size of each message of `/flood`."""


class WebSocketService:
    """Echoes messages. Path `/refuse` is refused, `/flood` sends messages until the peer disconnects."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.closes: list[int | None] = []
        self.sent = 0

    def check(self, connection: ServerConnection, request: Request) -> Response | None:
        """Record the request, and refuse one path."""
        self.headers.append({name.lower(): value for name, value in request.headers.raw_items()})
        self.paths.append(request.path)
        if request.path == "/refuse":
            return connection.respond(http.HTTPStatus.FORBIDDEN, "not you\n")
        return None

    async def handle(self, connection: ServerConnection) -> None:
        """Serve one connection."""
        assert connection.request is not None
        if connection.request.path == "/flood":
            while True:
                await connection.send(bytes(FLOOD_BYTES))
                self.sent += 1
        async for message in connection:
            await connection.send(message)
            if message == "bye":
                await connection.close(4000, "bye")
        self.closes.append(connection.close_code)


async def start_websockets() -> tuple[WebSocketService, Server, int]:
    """Start the server on loopback. It knows the subprotocol `v1.json`."""
    service = WebSocketService()
    server = await serve(
        service.handle,
        "127.0.0.1",
        0,
        process_request=service.check,
        subprotocols=[Subprotocol("v1.json")],
        select_subprotocol=lambda _, offered: Subprotocol("v1.json") if "v1.json" in offered else None,
        max_size=None,
        compression=None,
    )
    return service, server, next(iter(server.sockets)).getsockname()[1]


async def _main() -> None:
    _, server, port = await start_websockets()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(_main())
