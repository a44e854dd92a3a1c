"""The SDK's providers for processes that fork. Imports the SDK; import it only when needed.

The SDK's own providers detect the process' attributes again in every forked child, with a thread pool, right
after the fork. If a lock of `concurrent.futures` was held at the fork, a child that is about to exec
(`subprocess` with a `preexec_fn`, by which services bind their children's life to their own) hangs for ever.
These providers only replace the locks.
"""

from __future__ import annotations

import threading

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider


class ForkableMeterProvider(MeterProvider):
    """In a forked child metrics keep the parent's process id. They are not sent from there."""

    def _handle_fork(self) -> None:
        self._lock = threading.Lock()
        self._meter_lock = threading.Lock()
        type(self)._all_metric_readers_lock = threading.Lock()


class ForkableTracerProvider(TracerProvider):
    """In a forked child spans keep the parent's process id."""

    def _handle_fork(self) -> None:
        self._tracers_lock = threading.Lock()


class ForkableLoggerProvider(LoggerProvider):
    """In a forked child log records keep the parent's process id."""

    def _handle_fork(self) -> None:
        self._logger_cache_lock = threading.Lock()
        self._active_loggers_lock = threading.Lock()
