"""Read the settings of a sidecar from arguments, the environment (protocol.md, section 5.1) and defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from nvcf_broker.process import free_port
from nvcf_proto import environment as env
from nvcf_proto.settings import INFERENCE_READY_TIMEOUT
from nvcf_worker.control.config import LOOPBACK, server_host
from nvcf_worker.errors import ConfigurationError
from nvcf_worker.process.durations import parse_duration
from nvcf_worker.run.sidecar.health import HealthCheck, Protocol

DEFAULT_HEALTH_TIMEOUT = 10.0
DEFAULT_HEALTH_INTERVAL = 5.0
PORT_PLACE = "{port}"


@dataclass(frozen=True, kw_only=True)
class SidecarSettings:
    """Settings of a sidecar. Times are in seconds; without a `command` the server runs by itself."""

    host: str
    port: int
    check: HealthCheck
    interval: float
    ready_timeout: float
    command: tuple[str, ...]

    def with_free_port(self) -> SidecarSettings:
        """Replace port 0 by a free port, also in the health check."""
        if self.port:
            return self
        port = free_port(self.host)
        return replace(self, port=port, check=replace(self.check, port=self.check.port or port))

    def command_line(self) -> list[str]:
        """Return the command with the port in place of `{port}`."""
        return [word.replace(PORT_PLACE, str(self.port)) for word in self.command]


def read_settings(
    environ: Mapping[str, str],
    *,
    port: int | None = None,
    host: str | None = None,
    health: str | None = None,
    health_protocol: str | None = None,
    health_port: int | None = None,
    health_timeout: str | float | None = None,
    health_expect: int | None = None,
    health_interval: float = DEFAULT_HEALTH_INTERVAL,
    ready_timeout: str | float | None = None,
    command: Sequence[str] = (),
) -> SidecarSettings:
    """Combine arguments and environment. Raises ConfigurationError that names the wrong setting."""
    server_port = _port("the port", port, environ, env.INFERENCE_PORT)
    if server_port is None:
        raise ConfigurationError(f"no port: give --port, or set {env.INFERENCE_PORT}")
    if server_port == 0 and not command:
        raise ConfigurationError("port 0 means any free port, so it needs a command to pass the port to")
    if host is None:
        host = LOOPBACK if command else server_host(environ)
    endpoint = health if health is not None else environ.get(env.INFERENCE_HEALTH_ENDPOINT) or None
    protocol = _protocol(health_protocol or environ.get(env.INFERENCE_HEALTH_PROTOCOL), endpoint)
    if protocol == "http" and not (endpoint or "/").startswith("/"):
        raise ConfigurationError(f"the health endpoint is {endpoint!r}; a path begins with '/'")
    expected = health_expect
    if expected is None:
        expected = _status(environ.get(env.INFERENCE_HEALTH_EXPECTED_RESPONSE_CODE, ""))
    check = HealthCheck(
        protocol,
        host,
        _port("the health port", health_port, environ, env.INFERENCE_HEALTH_PORT) or server_port,
        endpoint or ("/" if protocol == "http" else ""),
        _seconds(health_timeout, environ, env.INFERENCE_HEALTH_TIMEOUT, DEFAULT_HEALTH_TIMEOUT),
        expected,
    )
    return SidecarSettings(
        host=host,
        port=server_port,
        check=check,
        interval=health_interval,
        ready_timeout=_seconds(ready_timeout, environ, env.INFERENCE_READY_TIMEOUT, INFERENCE_READY_TIMEOUT),
        command=tuple(command),
    )


def _protocol(text: str | None, endpoint: str | None) -> Protocol:
    if not text:
        return "http" if endpoint else "tcp"
    lowered = text.strip().lower()
    if lowered not in ("http", "grpc", "tcp"):
        raise ConfigurationError(f"the health protocol is {text!r}; it must be http, grpc or tcp")
    return cast(Protocol, lowered)


def _port(what: str, given: int | None, environ: Mapping[str, str], name: str) -> int | None:
    text = str(given) if given is not None else environ.get(name, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ConfigurationError(f"{what} is {text[:32]!r}; it must be an integer from 0 to 65535")
    return int(text)


def _status(text: str) -> int:
    if not text.strip():
        return 200
    if not text.strip().isdigit() or not 200 <= int(text) <= 599:
        raise ConfigurationError(
            f"{env.INFERENCE_HEALTH_EXPECTED_RESPONSE_CODE} is {text[:32]!r}; it must be 200 to 599"
        )
    return int(text)


def _seconds(given: str | float | None, environ: Mapping[str, str], name: str, default: float) -> float:
    text = str(given) if given is not None else environ.get(name, "")
    if not text.strip():
        return default
    shown = name if given is None else "time-out"
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ConfigurationError(f"{shown}: {error}") from error
    if seconds <= 0:
        raise ConfigurationError(f"{shown} is {text}; it must be above 0")
    return seconds
