"""A gRPC function without generated code: bytes in and out. `python -m tests.functions.grpc_service PORT`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
import grpc.aio

SERVICE = "test.Service"
LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

Context = grpc.aio.ServicerContext[bytes, bytes]


class Service:
    """A service that records its calls for tests."""

    def __init__(self) -> None:
        self.port = 0
        self.metadata: list[dict[str, str]] = []
        self.cancelled = 0
        self.running = 0
        self.sent = 0
        self.state: dict[bytes, bytes] = {}

    async def echo(self, request: bytes, context: Context) -> bytes:
        """Return the request. Metadata `x-echo` is returned as metadata and as a trailer."""
        metadata = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
        self.metadata.append(metadata)
        if "x-echo" in metadata:
            await context.send_initial_metadata((("x-initial", metadata["x-echo"]),))
            context.set_trailing_metadata((("x-trailing", metadata["x-echo"]), ("x-bin", b"\x00\xff")))
        return request

    async def fail(self, request: bytes, context: Context) -> bytes:
        """Abort with an error."""
        await context.abort(grpc.StatusCode.DATA_LOSS, "lost: ä%\n" + request.decode())

    async def hang(self, request: bytes, context: Context) -> bytes:
        """Wait until cancelled."""
        self.running += 1
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return b""

    async def count(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Send N messages of SIZE bytes for the request `N SIZE`."""
        number, size = (int(part) for part in request.split())
        for index in range(number):
            yield index.to_bytes(4) + bytes(size - 4)
            self.sent = index + 1

    async def total(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """Return the number of bytes."""
        size = 0
        async for part in requests:
            size += len(part)
        return str(size).encode()

    async def chat(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Send each message back at once."""
        async for part in requests:
            yield b"re: " + part

    async def stuck(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Read nothing."""
        await asyncio.sleep(3600)
        yield b""

    async def put(self, request: bytes, context: Context) -> bytes:
        """Store the value of `KEY=VALUE`, or return the value of `KEY`."""
        key, equals, value = request.partition(b"=")
        if equals:
            self.state[key] = value
        return self.state.get(key, b"")

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers for `add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
                "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
                "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
                "Put": grpc.unary_unary_rpc_method_handler(self.put),
                "Count": grpc.unary_stream_rpc_method_handler(self.count),
                "Total": grpc.stream_unary_rpc_method_handler(self.total),
                "Stuck": grpc.stream_stream_rpc_method_handler(self.stuck),
                "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            },
        )


async def start_service(port: int = 0, **options: int) -> tuple[Service, grpc.aio.Server, int]:
    """Start an unmodified grpcio server on loopback."""
    service, server = (
        Service(),
        grpc.aio.server(options=[*LIMITS, *((f"grpc.{name}", value) for name, value in options.items())]),
    )
    server.add_generic_rpc_handlers((service.handlers(),))
    bound = service.port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return service, server, bound


async def _main(port: int) -> None:
    _, server, bound = await start_service(port)
    sys.stdout.write(f"{bound}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
