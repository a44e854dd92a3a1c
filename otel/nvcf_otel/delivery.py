"""Bounded queues between a process and its telemetry backend.

Putting an item never blocks; one thread sends. When the backend is slow or gone the queue fills, and new
items are dropped and counted, so that the process never waits for telemetry.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from opentelemetry import context

from nvcf_otel.settings import QueueSettings

log = logging.getLogger("nvcf_otel")

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

SAY_AGAIN = 300.0
"""Seconds after which a backend that is still unreachable is logged again."""

_SUPPRESSED = "suppress_instrumentation"


class Exporter(Protocol[T_contra]):
    """One of the SDK's exporters."""

    def export(self, batch: Sequence[T_contra], /) -> Any:
        """Export a batch. The result's name is SUCCESS or another."""

    def shutdown(self) -> None:
        """Stop, and interrupt an export in progress."""


class Drops:
    """Counters of dropped items by kind of telemetry."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, signal: str, count: int) -> None:
        """Count more dropped items."""
        with self._lock:
            self._counts[signal] += count

    def all(self) -> dict[str, int]:
        """Return the counts so far."""
        with self._lock:
            return dict(self._counts)


class Reports:
    """Logs once that a backend does not accept telemetry, and when it does again. `clock` is in seconds."""

    def __init__(self, what: str, where: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._where = where
        self._clock = clock
        self._said_at: float | None = None
        self.reason = ""
        """Why the last export failed, if known."""

    def failed(self) -> None:
        """Note that an export failed."""
        now = self._clock()
        if self._said_at is None or now - self._said_at >= SAY_AGAIN:
            self._said_at = now
            why = f": {self.reason}" if self.reason else ""
            log.warning("%s cannot be sent to %s and are dropped%s", self._what, self._where, why)

    def succeeded(self) -> None:
        """Note that an export arrived."""
        if self._said_at is not None:
            self._said_at = None
            log.warning("%s arrive at %s again", self._what, self._where)


class Delivery(Generic[T]):
    """One queue with its thread. `make` opens the exporter, in the thread that uses it.

    A forked child gets its own queue, thread and exporter.
    """

    def __init__(
        self,
        signal: str,
        make: Callable[[], Exporter[T]],
        settings: QueueSettings,
        drops: Drops,
        reports: Reports,
    ) -> None:
        self._signal = signal
        self._make = make
        self._settings = settings
        self._drops = drops
        self._reports = reports
        self._closed = False
        self._begin()
        again = weakref.WeakMethod(self._forked)

        def after_fork() -> None:
            method = again()
            if method is not None:
                method()

        os.register_at_fork(after_in_child=after_fork)

    def _begin(self) -> None:
        self._queue: deque[T] = deque()
        self._wake = threading.Event()
        self._sent = threading.Condition()
        self._taken = 0
        self._done = 0
        self._exporter: Exporter[T] | None = None
        self._thread = threading.Thread(target=self._run, name=f"nvcf-telemetry-{self._signal}", daemon=True)
        if not self._closed:
            self._thread.start()

    def _forked(self) -> None:
        # Locks may have been held at the fork, and the thread does not exist here. The parent sends its items
        # itself.
        self._drops = Drops()
        self._begin()

    def put(self, item: T) -> None:
        """Queue an item, or count it as dropped. Never blocks."""
        queue = self._queue
        if self._closed or len(queue) >= self._settings.size:
            self._drops.add(self._signal, 1)
            return
        queue.append(item)
        if len(queue) >= self._settings.batch:
            self._wake.set()

    def flush(self, seconds: float) -> bool:
        """Wait until the present items are sent or dropped. Return False after `seconds`."""
        with self._sent:
            target = self._taken + len(self._queue)
        deadline = time.monotonic() + seconds
        while True:
            self._wake.set()
            with self._sent:
                if self._done >= target:
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._sent.wait(min(left, 0.1))

    def close(self, seconds: float) -> None:
        """Send the queued items within `seconds`. The rest is dropped and counted."""
        self.flush(seconds)
        self._closed = True
        self._wake.set()
        exporter = self._exporter
        if exporter is not None:
            # Interrupts a hanging call to the backend.
            exporter.shutdown()
        self._thread.join(0.2)
        left = len(self._queue)
        self._queue.clear()
        if left:
            self._drops.add(self._signal, left)

    def _run(self) -> None:
        context.attach(context.set_value(_SUPPRESSED, True))
        while not self._closed:
            self._wake.wait(self._settings.delay)
            self._wake.clear()
            while self._queue and not self._closed:
                self._send()

    def _send(self) -> None:
        batch: list[T] = []
        with self._sent:
            while self._queue and len(batch) < self._settings.batch:
                batch.append(self._queue.popleft())
            self._taken += len(batch)
        arrived = 0
        try:
            if self._exporter is None:
                self._exporter = self._make()
            if getattr(self._exporter.export(batch), "name", "") == "SUCCESS":
                arrived = len(batch)
        except Exception as error:  # noqa: BLE001 - whatever an exporter raises, the process goes on
            self._reports.reason = f"{type(error).__name__}: {error}"
        if arrived:
            self._reports.succeeded()
        if arrived < len(batch):
            self._drops.add(self._signal, len(batch) - arrived)
            if not arrived and not self._closed:
                self._reports.failed()
        with self._sent:
            self._done += len(batch)
            self._sent.notify_all()
