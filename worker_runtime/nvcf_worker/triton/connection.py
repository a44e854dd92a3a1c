"""`Triton`: a connection to one server, shared by its models."""

from __future__ import annotations

import asyncio
import time
from typing import Self

from nvcf_worker.errors import StartupError
from nvcf_worker.triton.handler import ModelHandler
from nvcf_worker.triton.link import Link
from nvcf_worker.triton.model import Model
from nvcf_worker.triton.transport import parse_address

DEFAULT_URL = "grpc://127.0.0.1:8001"
READY_SECONDS = 1800.0
READY_INTERVAL = 0.2


class Triton:
    """A Triton Inference Server: `Triton("grpc://127.0.0.1:8001").model("bert")`.

    url: `grpc://HOST:PORT` (or grpcs) or `http://HOST:PORT` (or https).
    shared_memory: send large tensors by shared memory to a server on this machine.

    It connects with the first call. Raises ValueError for a malformed URL.
    """

    def __init__(self, url: str = DEFAULT_URL, *, shared_memory: bool = True) -> None:
        self._address = parse_address(url)
        self._shared_memory = shared_memory
        self._link: Link | None = None

    def model(self, name: str, version: str | int = "") -> Model:
        """Return a model, which is awaited with its inputs.

        version: default is the newest that Triton serves.
        """
        return Model(self._connected, name, str(version))

    def handler(
        self, name: str, version: str | int = "", *, ready_timeout: float = READY_SECONDS
    ) -> ModelHandler:
        """Return a handler for `serve`: JSON objects become tensors by the model's own description, and back.

        ready_timeout: seconds that Triton may take until it is ready.
        """
        return ModelHandler(self, self.model(name, version), ready_timeout)

    async def ready(self) -> bool:
        """Return whether the server is ready; False also while it cannot be reached."""
        return await self._connected().transport.ready()

    async def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        """Wait until the server is ready. Raises StartupError after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not await self.ready():
            if time.monotonic() >= end:
                raise StartupError(f"Triton at {self._address.target} was not ready for {timeout:g} s")
            await asyncio.sleep(READY_INTERVAL)

    @property
    def unreachable_since(self) -> float | None:
        """Return since when the server has not been available, by `time.monotonic`; None while it is."""
        return None if self._link is None else self._link.watch.unreachable_since

    async def close(self) -> None:
        """Close the connections and remove shared memory. The next call connects anew."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _connected(self) -> Link:
        link = self._link
        # Connections belong to their loop; tests and scripts may run several after each other.
        if link is None or link.loop is not asyncio.get_running_loop():
            link = self._link = Link(self._address, shared_memory=self._shared_memory)
        return link
