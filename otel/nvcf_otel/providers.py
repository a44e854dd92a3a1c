"""The SDK's providers for processes that fork. Imports the SDK; imported when it is used.

The SDK's own find out anew, in every forked child, what the process is called: with a pool of threads, right
after the fork. A child that is only about to exec (`subprocess` with a `preexec_fn`, which is how a service
ties the lives of its children to its own) then never gets there if a lock of `concurrent.futures` was taken
over locked. Locks are made anew here as well, and nothing else is done.
"""

from __future__ import annotations

import threading

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider


class ForkableMeterProvider(MeterProvider):
    """A forked child's figures carry its parent's process id; what they are sent by sends none there."""

    def _handle_fork(self) -> None:
        self._lock = threading.Lock()
        self._meter_lock = threading.Lock()
        type(self)._all_metric_readers_lock = threading.Lock()


class ForkableTracerProvider(TracerProvider):
    """A forked child's spans carry its parent's process id."""

    def _handle_fork(self) -> None:
        self._tracers_lock = threading.Lock()


class ForkableLoggerProvider(LoggerProvider):
    """A forked child's records carry its parent's process id."""

    def _handle_fork(self) -> None:
        self._logger_cache_lock = threading.Lock()
        self._active_loggers_lock = threading.Lock()
