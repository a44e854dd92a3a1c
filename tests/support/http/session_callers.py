"""An unmodified grpcio client for sessions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable

import grpc.aio

from tests.functions.grpc_service import LIMITS, SERVICE
from tests.support.platform.gateways import Gateway, Platform, Version

Metadata = tuple[tuple[str, str], ...]


class Channel:
    """A channel to the sessions port, with the metadata that routes its calls."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self.channel = channel
        self.metadata = metadata

    def call(self, name: str, request: bytes = b"", *extra: tuple[str, str], timeout: float = 60) -> Unary:
        """Make a unary call."""
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
            f"/{SERVICE}/{name}"
        )
        return method(request, metadata=self.metadata + extra, timeout=timeout)

    def down(self, name: str, request: bytes, timeout: float = 60) -> Down:
        """Make a call with a streamed response."""
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(
            f"/{SERVICE}/{name}"
        )
        return method(request, metadata=self.metadata, timeout=timeout)

    def up(self, name: str, requests: Iterable[bytes], timeout: float = 60) -> Up:
        """Make a call with a streamed request."""
        method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = self.channel.stream_unary(
            f"/{SERVICE}/{name}"
        )
        return method(iter(requests), metadata=self.metadata, timeout=timeout)

    def both(self, name: str, timeout: float = 60) -> Both:
        """Make a call with streams in both directions."""
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(
            f"/{SERVICE}/{name}"
        )
        return method(metadata=self.metadata, timeout=timeout)


Unary = grpc.aio.UnaryUnaryCall[bytes, bytes]
Down = grpc.aio.UnaryStreamCall[bytes, bytes]
Up = grpc.aio.StreamUnaryCall[bytes, bytes]
Both = grpc.aio.StreamStreamCall[bytes, bytes]


def routing(platform: Platform, version: Version, *, key: str = "admin", named: bool = True) -> Metadata:
    """Return the metadata that routes a call."""
    found: Metadata = (
        ("authorization", f"Bearer {platform.keys[key]}"),
        ("function-id", version.function_id),
    )
    return (*found, ("function-version-id", version.id)) if named else found


@contextlib.asynccontextmanager
async def grpc_channel(gateway: Gateway, metadata: Metadata) -> AsyncIterator[Channel]:
    """Open a channel with its own connection."""
    options = [*LIMITS, ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(gateway.sessions, options=options) as channel:
        yield Channel(channel, metadata)
