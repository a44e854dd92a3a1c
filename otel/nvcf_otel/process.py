"""Resource use of the process, and the delay of its event loop."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from nvcf_otel import names, worker_instruments

BEAT = 0.25
WINDOW = 60.0
_STAT = Path("/proc/self/stat")
_MEMORY = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Return the physical memory of this process in bytes."""
    try:
        return int(_MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        # Systems other than Linux only know the maximum so far.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


_STARTED = time.time()


def age() -> float:
    """Return the seconds since this process started; outside Linux, since this module's import."""
    try:
        started = int(_STAT.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return time.time() - _STARTED


def observe_process(meter: Meter, attributes: Mapping[str, str]) -> None:
    """Register the metrics of CPU time and memory."""

    def cpu(_: CallbackOptions) -> Iterable[Observation]:
        times = os.times()
        return [
            Observation(times.user, {**attributes, names.CPU_MODE: "user"}),
            Observation(times.system, {**attributes, names.CPU_MODE: "system"}),
        ]

    def memory(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(resident_bytes(), attributes)]

    worker_instruments.PROCESS_CPU_TIME.create(meter, cpu)
    worker_instruments.PROCESS_MEMORY_USAGE.create(meter, memory)


class Highest:
    """Maximum of the values of the last `window` seconds. May be read from another thread."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._values: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> None:
        """Add one value."""
        values = self._values
        # Older and lower values can never be the maximum again.
        while values and values[-1][1] <= value:
            values.pop()
        values.append((now, value))

    def at(self, now: float) -> float:
        """Return the maximum at `now`, 0 without values."""
        oldest = now - self._window
        return max((value for at, value in tuple(self._values) if at >= oldest), default=0.0)

    def trim(self, now: float) -> None:
        """Drop old values."""
        while self._values and self._values[0][0] < now - self._window:
            self._values.popleft()


class LoopLag:
    """Delay of the running event loop: run `watch` as a task."""

    def __init__(self) -> None:
        self._highest = Highest()

    @property
    def seconds(self) -> float:
        """Return the longest delay of the last minute in seconds."""
        return self._highest.at(time.monotonic())

    async def watch(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.monotonic() + BEAT
            await asyncio.sleep(BEAT)
            now = time.monotonic()
            self._highest.add(now, max(0.0, now - due))
            self._highest.trim(now)

    def observe(self, meter: Meter, attributes: Mapping[str, str]) -> None:
        """Register the metric."""
        worker_instruments.EVENT_LOOP_LAG.create(meter, lambda _: [Observation(self.seconds, attributes)])
