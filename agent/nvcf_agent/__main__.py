"""`python -m nvcf_agent`: the agent of one cluster, of processes of this machine or of pods."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator

from nvcf_agent import process_site
from nvcf_agent.errors import AgentError
from nvcf_agent.options import KUBERNETES, parse_arguments
from nvcf_broker.errors import BrokerError
from nvcf_otel import names
from nvcf_otel.errors import TelemetryError
from nvcf_otel.logs import configure_logging
from nvcf_otel.service import service_telemetry
from nvcf_otel.setup import Telemetry
from nvcf_proto.launch import DISTRIBUTION

_log = logging.getLogger(__name__)

Serve = Callable[[Telemetry, asyncio.Event], Awaitable[None]]


def main() -> None:
    """Run the command. An error the user can act on is one line on standard error and exit code 1."""
    options = parse_arguments()
    configure_logging(options.log_level.upper(), component="agent")
    try:
        if options.backend == KUBERNETES:
            _kubernetes(options)
        else:
            process_site.check(options)
            with process_site.only_agent(options.data.absolute()):
                _run(
                    options,
                    options.cluster_id,
                    lambda telemetry, stop: process_site.serve(options, telemetry, stop),
                )
    except* (AgentError, BrokerError, TelemetryError, OSError) as group:
        for error in _leaves(group):
            _log.error("%s", error)
        sys.exit(1)


def _kubernetes(options: argparse.Namespace) -> None:
    try:
        from nvcf_agent import kubernetes_site as site
    except ImportError as error:
        if not (error.name or "").startswith("kubernetes"):
            raise
        text = f"--backend {KUBERNETES}: the package {error.name} is missing; this needs: "
        raise AgentError(f"{text}pip install '{DISTRIBUTION}[agent,kubernetes]'") from None
    settings = asyncio.run(site.read(options))
    _run(
        options,
        settings.cluster_id,
        lambda telemetry, stop: site.serve(options, settings, telemetry, stop),
    )


def _run(options: argparse.Namespace, cluster_id: str, serve: Serve) -> None:
    identity = f"{cluster_id}-{os.getpid()}"
    with service_telemetry("agent", identity, options.metrics, {names.CLUSTER: cluster_id}) as telemetry:
        asyncio.run(_until_told(telemetry, serve))


async def _until_told(telemetry: Telemetry, serve: Serve) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(telemetry, stop)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


if __name__ == "__main__":
    main()
