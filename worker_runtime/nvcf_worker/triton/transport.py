"""What a call consists of, and the interface of the two protocols that carry it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from nvcf_worker.run.tritonserver.spec import ModelSpec
from nvcf_worker.triton.tensors import Array, Tensor

MICROSECONDS = 1_000_000
LOCAL_HOSTS = frozenset(("localhost", "127.0.0.1", "::1"))


class Address(NamedTuple):
    """Where Triton listens. `local`: on this machine, so that shared memory may be possible."""

    protocol: str
    target: str
    tls: bool
    local: bool


def parse_address(url: str) -> Address:
    """Parse `grpc://HOST:PORT`, `grpcs://`, `http://` or `https://`. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("grpc", "grpcs", "http", "https") or not parts.hostname:
        raise ValueError(
            f"Triton's URL is {url!r}; it must be like grpc://127.0.0.1:8001 or http://127.0.0.1:8000"
        )
    if parts.path.rstrip("/") or parts.query or parts.username is not None:
        raise ValueError(f"Triton's URL is {url!r}; it must have a host and a port, and no more")
    protocol = parts.scheme.removesuffix("s")
    port = parts.port or (8001 if protocol == "grpc" else 8000)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Address(protocol, f"{host}:{port}", parts.scheme.endswith("s"), parts.hostname in LOCAL_HOSTS)


class SequencePlace(NamedTuple):
    """The place of a request in its sequence."""

    id: int | str
    start: bool
    end: bool


class Region(NamedTuple):
    """A part of shared memory that Triton knows by name."""

    name: str
    size: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a model. priority: 0 for the model's own. wait: seconds in Triton's queue at most.

    headers: trace context. input_regions, output_regions: tensors that are in shared memory, by name.
    """

    spec: ModelSpec
    tensors: list[Tensor]
    id: str = ""
    priority: int = 0
    wait: float | None = None
    sequence: SequencePlace | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    input_regions: Mapping[str, Region] = field(default_factory=dict)
    output_regions: Mapping[str, Region] = field(default_factory=dict)

    @property
    def wait_microseconds(self) -> int | None:
        """Return the wait as Triton takes it."""
        return None if self.wait is None else max(1, int(self.wait * MICROSECONDS))


class Transport(Protocol):
    """Speaks one of Triton's protocols. Used on one event loop. Methods raise TritonRefused."""

    async def ready(self) -> bool:
        """Return whether the server is ready; False also while it cannot be reached."""

    async def describe(self, model: str, version: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return metadata and configuration of a model."""

    async def statistics(self, model: str, version: str) -> dict[str, Any]:
        """Return the statistics of a model, as in `model_stats` of the HTTP protocol."""

    async def infer(self, call: Call) -> dict[str, Array]:
        """Return the outputs that are not in shared memory. A cancellation reaches Triton."""

    def stream(self, call: Call) -> AsyncIterator[dict[str, Array]]:
        """Return the responses of a call one by one. Closing it reaches Triton."""

    async def register(self, region: Region, key: str) -> None:
        """Tell Triton of a region of system shared memory."""

    async def unregister(self, name: str) -> None:
        """Have Triton forget a region."""

    async def regions(self) -> dict[str, str]:
        """Return the keys of all regions of system shared memory that Triton knows, by name."""

    async def close(self) -> None:
        """Close the connections."""
