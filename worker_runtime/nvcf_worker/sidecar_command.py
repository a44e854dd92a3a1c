"""Sidecar mode as a function, `sidecar()`, and as a command, `nvcf-worker sidecar`."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from typing import Any

from nvcf_worker.errors import ConfigurationError
from nvcf_worker.function.handlers import Handler, Kind
from nvcf_worker.process.imported import for_definitions_only
from nvcf_worker.run.sidecar.settings import DEFAULT_HEALTH_INTERVAL, read_settings
from nvcf_worker.serving import run_worker


def sidecar(
    port: int | None = None,
    *,
    command: Sequence[str] = (),
    host: str | None = None,
    health: str | None = None,
    health_protocol: str | None = None,
    health_port: int | None = None,
    health_timeout: float | str | None = None,
    health_expect: int | None = None,
    health_interval: float = DEFAULT_HEALTH_INTERVAL,
    ready_timeout: float | str | None = None,
    concurrency: int | None = None,
    grace_seconds: float | None = None,
    log_level: str | None = None,
    metrics: str | None = None,
) -> None:
    """Serve requests with an HTTP server that listens on `port`. Returns as `serve` does.

    command: starts the server as a child process. `{port}` in it is replaced by the port, and PORT is set.
        The process is ended after the last request. If it ends by itself, the worker exits with code 5. With
        a command, port 0 means any free port, and the worker token is not cached in SHARED_CONFIG_DIR.
    host: default this machine; without a command, HELM_CHART_INFERENCE_SERVICE_NAME in HELM_CHART_NAMESPACE.
    health: path to GET (http), or service to check (grpc). Default: the port has to accept connections.
    health_protocol: "http", "grpc" (grpc.health.v1) or "tcp".
    health_port: default `port`.
    health_timeout: time for one check: seconds, or text like "2s"; default 10 s.
    health_expect: HTTP status of a healthy server, default 200.
    health_interval: seconds between two checks of a healthy server.
    ready_timeout: how long the server may take to become healthy, default 30 min. After that the worker
        exits with code 4.
    metrics: HOST:PORT where Prometheus finds the worker's metrics, or "health" for the health port.
    concurrency, grace_seconds, log_level: as for `serve`.

    Defaults come from INFERENCE_PORT, INFERENCE_HEALTH_* and INFERENCE_READY_TIMEOUT (protocol.md, section
    5.1). Raises ConfigurationError for invalid arguments.
    """
    if for_definitions_only():
        return
    settings = read_settings(
        os.environ,
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
    )
    # Imported here because it imports the HTTP client, which `import nvcf_worker` must not.
    from nvcf_worker.run.sidecar.server import Server

    server = Server(settings)
    name = command[0] if command else f"port {server.port}"
    run_worker(
        Handler(server.upstream.handle, Kind.ASYNC, None, name, takes_polls=True),
        server,
        concurrency=concurrency,
        grace_seconds=grace_seconds,
        log_level=log_level,
        session_port=server.port,
        session_host=settings.host,
        metrics=metrics,
        # The server has this process' user and could read the file.
        cache_token=not command,
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of `nvcf-worker sidecar`."""
    result = argparse.ArgumentParser(
        prog="nvcf-worker sidecar",
        description="Serve a function with an HTTP server that listens on a port of this machine.",
        epilog="Example: nvcf-worker sidecar --port 8000 --health /ready -- uvicorn main:app --port 8000",
    )
    add = result.add_argument
    add("--port", type=int, help="port of the server [INFERENCE_PORT]; 0: any free port")
    add("--host", help="host of the server [127.0.0.1, or the service of the function's Helm chart]")
    add("--health", metavar="/PATH", help="path of the health check [INFERENCE_HEALTH_ENDPOINT]")
    protocol = "protocol of the health check [http with --health, else tcp]"
    add("--health-protocol", choices=("http", "grpc", "tcp"), help=protocol)
    add("--health-port", type=int, help="port of the health check [the server's]")
    add("--health-timeout", metavar="TIME", help="time-out of one health check, e.g. 2s [10s]")
    add("--health-expect", type=int, metavar="STATUS", help="HTTP status of a healthy server [200]")
    interval = "seconds between two health checks [%(default)g]"
    seconds = functools.partial(add, type=float, metavar="SECONDS")
    seconds("--health-interval", default=DEFAULT_HEALTH_INTERVAL, help=interval)
    add("--ready-timeout", metavar="TIME", help="time until the server is healthy [30m]")
    add_worker_options(result, slots="1")
    add("command", nargs="*", metavar="-- COMMAND", help="command that starts the server")
    return result


def add_worker_options(parser: argparse.ArgumentParser, *, slots: str) -> None:
    """Add the options of the worker itself, whatever it serves. `slots` is the default number of requests."""
    add = parser.add_argument
    add("--concurrency", type=int, metavar="N", help=f"maximum number of requests in flight [{slots}]")
    add("--metrics", metavar="HOST:PORT", help="address of Prometheus metrics [NVCF_METRICS_ADDRESS]")
    grace = "time that requests in flight get after SIGTERM [NVCF_GRACE_SECONDS, else 25]"
    add("--grace", dest="grace_seconds", type=float, metavar="SECONDS", help=grace)


def main(arguments: list[str]) -> None:
    """Run `nvcf-worker sidecar`. Raises ConfigurationError."""
    options, command = read_command(parser(), arguments, "the server's command comes")
    sidecar(command=command, **options)


def read_command(
    parser: argparse.ArgumentParser, arguments: list[str], what_follows: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the options, and the arguments after the first `--`. Raises ConfigurationError.

    argparse would take flags after `--` for ours. The parser's `command` stands for them in its help;
    `what_follows` is said if anything else is there.
    """
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options = vars(parser.parse_args(arguments[:at]))
    if unexpected := options.pop("command"):
        raise ConfigurationError(f"unexpected {unexpected[0]!r}; {what_follows} after '--'")
    return options, arguments[at + 1 :]
