"""A real OTLP receiver (gRPC and HTTP, protobuf, gzip) that can fail in the ways that backends fail.

    with OtlpReceiver() as backend:
        environment = backend.environment()        # or backend.environment("http/protobuf")
        ...
        await eventually(lambda: backend.spans("handler"), "the span arrived")
        backend.mode = Mode.STALL

It serves from threads of its own, so coroutines and blocking code can both talk to it. Its two ports stay the
same whatever mode it is in.
"""

from __future__ import annotations

import enum
import itertools
import socket
import threading
from types import TracebackType
from typing import Protocol

from tests.support.otlp.records import Records


class Mode(enum.Enum):
    """How the receiver treats requests."""

    OK = "kept, and answered"
    DEAD = "connections are refused"
    HANG = "connections are accepted, nothing is ever read"
    NOISE = "connections are accepted, random bytes are sent, the connection is closed"
    STALL = "requests are read and never answered"
    SLOW = "kept, and answered after `delay` seconds"
    CORRUPT = "in turn: an answer that cannot be decoded, an internal error, half an answer"
    RETRYABLE = "429 or UNAVAILABLE, with the wish to be asked again after `retry_after` seconds"
    REFUSED = "400 or INVALID_ARGUMENT, not to be tried again"
    PARTIAL = "kept, and answered with a partial success: one item rejected"


LISTENING = frozenset(Mode) - {Mode.DEAD, Mode.HANG, Mode.NOISE}


class Listener(Protocol):
    """A listener."""

    def close(self) -> None:
        """Stop listening and cut all connections."""


class OtlpReceiver(Records):
    """Serves while its context is open. A new `mode` applies to every later request."""

    def __init__(self, mode: Mode = Mode.OK, *, delay: float = 1.0, retry_after: float = 1.0) -> None:
        super().__init__()
        self.delay = delay
        self.retry_after = retry_after
        self.attempts = 0
        """Number of requests that were read."""
        self.connections = 0
        """Number of connections that were accepted and not read."""
        self.turns = itertools.count()
        self._mode = mode
        self._released = threading.Event()
        self._held = [_hold_port(), _hold_port()]
        self._listeners: list[Listener] = []

    @property
    def mode(self) -> Mode:
        """The current behaviour."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        before, self._mode = self._mode, mode
        released, self._released = self._released, threading.Event()
        released.set()
        if (before in LISTENING) != (mode in LISTENING) or mode not in LISTENING:
            self._close_listeners()
            self._open_listeners()

    @property
    def grpc_port(self) -> int:
        """Return the address for OTLP over gRPC."""
        return int(self._held[0].getsockname()[1])

    @property
    def http_port(self) -> int:
        """Return the URL for OTLP over HTTP."""
        return int(self._held[1].getsockname()[1])

    def endpoint(self, protocol: str = "grpc") -> str:
        """Return the base URL for `grpc` or `http/protobuf`."""
        port = self.grpc_port if protocol == "grpc" else self.http_port
        return f"http://127.0.0.1:{port}"

    def environment(self, protocol: str = "grpc") -> dict[str, str]:
        """Return the standard variables that send all telemetry here with short intervals."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint(protocol),
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BLRP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "300",
        }

    def stall(self, seconds: float | None = None) -> None:
        """Hold a request until the mode changes, or for `seconds`."""
        self._released.wait(seconds)

    def attempt(self) -> None:
        """Count one request."""
        with self._changed:
            self.attempts += 1
            self._changed.notify_all()

    def __enter__(self) -> OtlpReceiver:
        self._open_listeners()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._close_listeners()
        for held in self._held:
            held.close()

    def _open_listeners(self) -> None:
        from tests.support.otlp import listeners as otlp_listeners

        if self._mode is Mode.DEAD:
            return
        if self._mode in (Mode.HANG, Mode.NOISE):
            self._listeners = [
                otlp_listeners.RawListener(self, port) for port in (self.grpc_port, self.http_port)
            ]
        else:
            self._listeners = [
                otlp_listeners.GrpcListener(self, self.grpc_port),
                otlp_listeners.HttpListener(self, self.http_port),
            ]

    def _close_listeners(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()


def _hold_port() -> socket.socket:
    """Return a bound socket that does not listen. It reserves the port between two listeners."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    return held
