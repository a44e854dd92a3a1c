"""Pass connections on from a listening socket of the machine to an address in the network of a real node.

A socket stays in the network namespace it was made in. `node.forward` makes it, and starts this inside the
node's namespace. usage: python -m tests.kubernetes.cluster.relay DESCRIPTOR HOST PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

CONNECT_SECONDS = 10.0
_BLOCK = 1 << 16


async def relay(listening: socket.socket, host: str, port: int) -> None:
    """Serve until cancelled."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                there, back = await asyncio.open_connection(host, port)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_copy(reader, back))
                    tasks.create_task(_copy(there, writer))
            finally:
                back.transport.abort()
        writer.transport.abort()

    server = await asyncio.start_server(serve, sock=listening)
    await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while block := await reader.read(_BLOCK):
            writer.write(block)
            await writer.drain()
        writer.write_eof()
        return
    writer.transport.abort()


if __name__ == "__main__":
    asyncio.run(relay(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], int(sys.argv[3])))
