"""What belongs to one connection: transport, shared memory, and the watch of the models."""

from __future__ import annotations

import asyncio

from nvcf_worker.triton.shared_memory import SharedMemory
from nvcf_worker.triton.transport import Address, Transport
from nvcf_worker.triton.watch import Watch


class Link:
    """A connection, for one event loop."""

    def __init__(self, address: Address, *, shared_memory: bool) -> None:
        self.transport = _transport(address)
        self.memory = SharedMemory(self.transport) if shared_memory and address.local else None
        self.watch = Watch(self.transport, self.memory)
        self.loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """End the watch, remove shared memory, close the connections."""
        await self.watch.close()
        if self.memory is not None:
            await self.memory.close()
        await self.transport.close()


def _transport(address: Address) -> Transport:
    # Only the one that is used: each imports a client of its own.
    if address.protocol == "grpc":
        from nvcf_worker.triton.grpc_transport import GrpcTransport

        return GrpcTransport(address)
    from nvcf_worker.triton.http_transport import HttpTransport

    return HttpTransport(address)
