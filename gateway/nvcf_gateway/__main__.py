"""`python -m nvcf_gateway`: run one gateway until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Sequence

from nvcf_broker.errors import BrokerError
from nvcf_gateway.app import new_gateway_id, running_gateway
from nvcf_gateway.config import GatewayConfig, parse_arguments
from nvcf_gateway.errors import SetupError
from nvcf_gateway.http.descriptors import raise_limit
from nvcf_otel.errors import TelemetryError
from nvcf_otel.logs import configure_logging
from nvcf_otel.service import metrics_host, observed, service_telemetry
from nvcf_otel.setup import Telemetry


async def serve(config: GatewayConfig, gateway_id: str, telemetry: Telemetry) -> None:
    """Run until a signal arrives, or until the broker has closed the connection for good.

    A second signal ends the draining at once.
    """
    stop, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        (again if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    async with running_gateway(config, gateway_id) as gateway, observed(telemetry, gateway.client):
        ready = {
            "event": "ready",
            "http": gateway.http,
            "grpc": gateway.grpc,
            "gatewayId": gateway.gateway_id,
            "sessions": gateway.sessions,
            "metrics": metrics_host(telemetry, config.metrics),
        }
        shown = {name: value for name, value in ready.items() if value is not None}
        print(json.dumps(shown), flush=True)  # noqa: T201 # a supervisor reads the addresses from it
        stopped = asyncio.create_task(stop.wait())
        closed = asyncio.create_task(gateway.client.wait_closed())
        try:
            await asyncio.wait({stopped, closed}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await _first(gateway.drain(), again.wait(), gateway.client.wait_closed())
        finally:
            stopped.cancel()
            closed.cancel()
        if closed.done() and not stop.is_set():
            raise SetupError("the broker closed the connection for good: are the credentials still valid?")


async def _first(*ends: Awaitable[object]) -> None:
    """Wait for the first of them and cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in ends]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the gateway and return the exit code."""
    try:
        config = parse_arguments(arguments)
        configure_logging(config.log_level, component="gateway")
        raise_limit()
        gateway_id = new_gateway_id()
        with service_telemetry(
            "gateway", gateway_id, config.metrics, {"cloud.region": config.region}
        ) as telemetry:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(serve(config, gateway_id, telemetry))
    except (SetupError, BrokerError, TelemetryError) as error:
        print(f"nvcf-gateway: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    loop: type[asyncio.AbstractEventLoop] = uvloop.Loop
    return loop


if __name__ == "__main__":
    sys.exit(main())
