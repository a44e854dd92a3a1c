"""`sidecar()` and `nvcf-worker sidecar`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from nvcf_worker.errors import ConfigurationError
from nvcf_worker.function.handlers import Handler, Kind
from nvcf_worker.run.sidecar.settings import (
    DEFAULT_HEALTH_INTERVAL,
    DEFAULT_HOST,
    Arguments,
    read_settings,
)
from nvcf_worker.serving import DEFAULT_GRACE_SECONDS, run_worker


def sidecar(
    port: int | None = None,
    *,
    command: Sequence[str] = (),
    host: str = DEFAULT_HOST,
    health: str | None = None,
    health_protocol: str | None = None,
    health_port: int | None = None,
    health_timeout: str | float | None = None,
    health_expect: int | None = None,
    health_interval: float = DEFAULT_HEALTH_INTERVAL,
    ready_timeout: str | float | None = None,
    concurrency: int | None = None,
    grace_seconds: float = DEFAULT_GRACE_SECONDS,
    log_level: str | None = None,
    metrics: str | None = None,
) -> None:
    """Serve requests with an HTTP server that listens on `port`; returns as `serve` does.

    command: start this as a child process; `{port}` in it is replaced, and PORT set. It is ended after the
        last request; when it ends by itself, the worker does too, with exit code 5. With a command port 0
        means any free port.
    health: path to GET (http) or service to ask for (grpc); without one, the port only has to be open.
    health_protocol: "http", "grpc" (grpc.health.v1) or "tcp". health_port: default `port`.
    health_timeout: seconds, or text like "2s"; default 10 s. health_expect: HTTP status, default 200.
    metrics: HOST:PORT where Prometheus finds the worker's metrics, or "health" for the health port.
    ready_timeout: how long the server may take to become healthy, default 30 min; exit code 4 after that.

    What is not given is taken from INFERENCE_PORT, INFERENCE_HEALTH_* and INFERENCE_READY_TIMEOUT
    (protocol.md, section 5.1). Raises ConfigurationError for unusable arguments.
    """
    settings = read_settings(
        Arguments(
            port=port,
            host=host,
            health=health,
            health_protocol=health_protocol,
            health_port=health_port,
            health_timeout=health_timeout,
            health_expect=health_expect,
            health_interval=health_interval,
            ready_timeout=ready_timeout,
            command=command,
        ),
        os.environ,
    )
    # Imported late: it needs the HTTP client, which `import nvcf_worker` must not.
    from nvcf_worker.run.sidecar.server import Server

    server = Server(settings)
    name = command[0] if command else f"port {server.port}"
    run_worker(
        Handler(server.upstream.handle, Kind.ASYNC, None, name),
        server,
        concurrency=concurrency,
        grace_seconds=grace_seconds,
        log_level=log_level,
        session_port=server.port,
        metrics=metrics,
    )


def parser() -> argparse.ArgumentParser:
    """Arguments of `nvcf-worker sidecar`."""
    result = argparse.ArgumentParser(
        prog="nvcf-worker sidecar",
        description="Serve a function with an HTTP server that listens on a port of this machine.",
        epilog="Example: nvcf-worker sidecar --port 8000 --health /ready -- uvicorn main:app --port 8000",
    )
    result.add_argument("--port", type=int, help="of the server [INFERENCE_PORT]; 0: any free one")
    result.add_argument("--host", default=DEFAULT_HOST, help="of the server [%(default)s]")
    result.add_argument("--health", metavar="/PATH", help="health check [INFERENCE_HEALTH_ENDPOINT]")
    result.add_argument(
        "--health-protocol", choices=("http", "grpc", "tcp"), help="[http with --health, else tcp]"
    )
    result.add_argument("--health-port", type=int, help="[the server's]")
    result.add_argument("--health-timeout", metavar="TIME", help="of one check, e.g. 2s [10s]")
    result.add_argument("--health-expect", type=int, metavar="STATUS", help="of a healthy answer [200]")
    result.add_argument("--health-interval", type=float, default=DEFAULT_HEALTH_INTERVAL, metavar="SECONDS")
    result.add_argument("--ready-timeout", metavar="TIME", help="until the first healthy answer [30m]")
    result.add_argument("--concurrency", type=int, metavar="N", help="requests at once [1]")
    result.add_argument("--metrics", metavar="HOST:PORT", help="of Prometheus metrics [NVCF_METRICS_ADDRESS]")
    result.add_argument("--grace", type=float, default=DEFAULT_GRACE_SECONDS, metavar="SECONDS")
    result.add_argument("command", nargs="*", metavar="-- COMMAND", help="start the server with this")
    return result


def main(arguments: list[str]) -> None:
    """Entry point. Raises ConfigurationError."""
    # argparse would take the server's own flags for ours.
    ours, command = split_command(arguments)
    said = parser().parse_args(ours)
    if said.command:
        raise ConfigurationError(f"unexpected {said.command[0]!r}; the server's command comes after '--'")
    sidecar(
        said.port,
        command=command,
        host=said.host,
        health=said.health,
        health_protocol=said.health_protocol,
        health_port=said.health_port,
        health_timeout=said.health_timeout,
        health_expect=said.health_expect,
        health_interval=said.health_interval,
        ready_timeout=said.ready_timeout,
        concurrency=said.concurrency,
        grace_seconds=said.grace,
        metrics=said.metrics,
    )


def split_command(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What comes before the first `--` and what comes after it."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]
