"""A service's telemetry from its start to its end, and what each tells of itself: event loop and broker."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Protocol

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from nvcf_otel import instruments
from nvcf_otel.process import LoopLag
from nvcf_otel.setup import Telemetry, start_telemetry

_GRPC_FORK = "GRPC_ENABLE_FORK_SUPPORT"


class Connection(Protocol):
    """As much of a broker connection as is told of it."""

    @property
    def is_connected(self) -> bool:
        """Whether it is up."""
        ...

    def on_reconnect(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each reconnect; returns what takes it off again."""
        ...


def _keep_grpc_out_of_forks() -> None:
    """Services start processes, and nothing but exec happens after these forks.

    What gRPC does there for programs that go on without exec can end the child before its exec. The variable
    is read when gRPC is imported, and taken back for what is started from here.
    """
    if _GRPC_FORK in os.environ:
        return
    os.environ[_GRPC_FORK] = "0"
    try:
        import grpc  # noqa: F401 - for its reading of the variable
    finally:
        del os.environ[_GRPC_FORK]


@contextlib.contextmanager
def service_telemetry(
    component: str, instance_id: str, metrics_address: str | None, attributes: Mapping[str, str]
) -> Iterator[Telemetry]:
    """Telemetry around a service's event loop: at the end what is queued is sent, for some seconds at most.

    Raises MetricsAddressError.
    """
    _keep_grpc_out_of_forks()
    telemetry = start_telemetry(
        component, instance_id=instance_id, attributes=attributes, metrics_address=metrics_address
    )
    try:
        yield telemetry
    finally:
        telemetry.shutdown()


@contextlib.asynccontextmanager
async def observed(telemetry: Telemetry, connection: Connection) -> AsyncIterator[None]:
    """Tell of the running event loop and of its broker connection, if anybody listens."""
    if not telemetry.enabled:
        yield
        return
    meter = metrics.get_meter("nvcf_otel")
    reconnects = 0

    def reconnected() -> None:
        nonlocal reconnects
        reconnects += 1

    def count(_: CallbackOptions) -> list[Observation]:
        return [Observation(reconnects)]

    def connected(_: CallbackOptions) -> list[Observation]:
        return [Observation(int(connection.is_connected))]

    remove = connection.on_reconnect(reconnected)
    instruments.BROKER_RECONNECTS.create(meter, count)
    instruments.BROKER_CONNECTED.create(meter, connected)
    lag = LoopLag()
    lag.observe(meter, {})
    watching = asyncio.create_task(lag.watch(), name="event loop lag")
    try:
        yield
    finally:
        remove()
        watching.cancel()
        await asyncio.wait({watching})


def metrics_host(telemetry: Telemetry, address: str | None) -> str | None:
    """Where metrics are served, the port as bound; None without."""
    if address is None or telemetry.metrics_port is None:
        return None
    return f"{address.rpartition(':')[0]}:{telemetry.metrics_port}"
