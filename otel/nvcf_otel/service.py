"""Telemetry of a service from start to end, with the metrics of its event loop and broker connection."""

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
    """The part of a broker connection that is observed."""

    @property
    def is_connected(self) -> bool:
        """Return whether it is connected."""
        ...

    def on_reconnect(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each reconnect; return a function that removes it."""
        ...


def _keep_grpc_out_of_forks() -> None:
    """Switch off gRPC's fork handlers: services fork only to exec another program.

    These handlers serve programs that go on without exec, and can end the child before its exec. gRPC reads
    the variable at import; it is removed again for child processes.
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
    """Run a service's telemetry around its event loop, and send queued items at the end, within seconds.

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
    """Observe the running event loop and its broker connection, when telemetry is on."""
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
    """Return the address of the metrics with the bound port; None when there is none."""
    if address is None or telemetry.metrics_port is None:
        return None
    return f"{address.rpartition(':')[0]}:{telemetry.metrics_port}"
