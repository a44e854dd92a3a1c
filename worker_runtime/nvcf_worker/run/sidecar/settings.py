"""Settings of a sidecar: arguments, else the environment of protocol.md, section 5.1, else defaults."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from nvcf_proto import environment as env
from nvcf_proto.settings import INFERENCE_READY_TIMEOUT
from nvcf_worker.errors import ConfigurationError
from nvcf_worker.process.durations import parse_duration
from nvcf_worker.run.sidecar.probes import HealthCheck, Protocol

DEFAULT_HOST = "127.0.0.1"
DEFAULT_HEALTH_TIMEOUT = 10.0
DEFAULT_HEALTH_INTERVAL = 5.0
PORT_PLACE = "{port}"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a user said; None where nothing was said."""

    port: int | None = None
    host: str = DEFAULT_HOST
    health: str | None = None
    health_protocol: str | None = None
    health_port: int | None = None
    health_timeout: str | float | None = None
    health_expect: int | None = None
    health_interval: float = DEFAULT_HEALTH_INTERVAL
    ready_timeout: str | float | None = None
    command: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class SidecarSettings:
    """Settings in force. Times in seconds; `command` is empty when the server runs by itself."""

    host: str
    port: int
    check: HealthCheck
    interval: float
    ready_timeout: float
    command: tuple[str, ...]

    def with_free_port(self) -> SidecarSettings:
        """Port 0 becomes a free one, also for the check."""
        if self.port:
            return self
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((self.host, 0))
            port = int(probe.getsockname()[1])
        return replace(self, port=port, check=replace(self.check, port=self.check.port or port))

    def command_line(self) -> list[str]:
        """The command with the port put in place of `{port}`."""
        return [word.replace(PORT_PLACE, str(self.port)) for word in self.command]


def read_settings(said: Arguments, environ: Mapping[str, str]) -> SidecarSettings:
    """Combine them. Raises ConfigurationError naming what is wrong."""
    port = _port("the port", said.port, environ, env.INFERENCE_PORT)
    if port is None:
        raise ConfigurationError(f"no port: say --port, or set {env.INFERENCE_PORT}")
    if port == 0 and not said.command:
        raise ConfigurationError("port 0 means any free port, so it needs a command that is told it")
    endpoint = said.health if said.health is not None else environ.get(env.INFERENCE_HEALTH_ENDPOINT) or None
    protocol = _protocol(said.health_protocol or environ.get(env.INFERENCE_HEALTH_PROTOCOL), endpoint)
    if protocol == "http" and not (endpoint or "/").startswith("/"):
        raise ConfigurationError(f"the health endpoint is {endpoint!r}; a path begins with '/'")
    health_port = _port("the health port", said.health_port, environ, env.INFERENCE_HEALTH_PORT)
    expected = said.health_expect
    if expected is None:
        expected = _status(environ.get(env.INFERENCE_HEALTH_EXPECTED_RESPONSE_CODE, ""))
    check = HealthCheck(
        protocol,
        said.host,
        health_port or port,
        endpoint or ("/" if protocol == "http" else ""),
        _seconds(said.health_timeout, environ, env.INFERENCE_HEALTH_TIMEOUT, DEFAULT_HEALTH_TIMEOUT),
        expected,
    )
    return SidecarSettings(
        host=said.host,
        port=port,
        check=check,
        interval=said.health_interval,
        ready_timeout=_seconds(
            said.ready_timeout, environ, env.INFERENCE_READY_TIMEOUT, INFERENCE_READY_TIMEOUT
        ),
        command=tuple(said.command),
    )


def _protocol(text: str | None, endpoint: str | None) -> Protocol:
    if not text:
        return "http" if endpoint else "tcp"
    lowered = text.strip().lower()
    if lowered not in ("http", "grpc", "tcp"):
        raise ConfigurationError(f"the health protocol is {text!r}; there are http, grpc and tcp")
    return cast(Protocol, lowered)


def _port(what: str, said: int | None, environ: Mapping[str, str], name: str) -> int | None:
    text = str(said) if said is not None else environ.get(name, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ConfigurationError(f"{what} is {text[:32]!r}; it must be a whole number up to 65535")
    return int(text)


def _status(text: str) -> int:
    if not text.strip():
        return 200
    if not text.strip().isdigit() or not 200 <= int(text) <= 599:
        raise ConfigurationError(
            f"{env.INFERENCE_HEALTH_EXPECTED_RESPONSE_CODE} is {text[:32]!r}; it must be 200 to 599"
        )
    return int(text)


def _seconds(said: str | float | None, environ: Mapping[str, str], name: str, default: float) -> float:
    text = str(said) if said is not None else environ.get(name, "")
    if not text.strip():
        return default
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ConfigurationError(f"{name if said is None else 'time-out'}: {error}") from error
    if seconds <= 0:
        raise ConfigurationError(f"{name if said is None else 'time-out'} is {text}; it must be above 0")
    return seconds
