"""Limits on the worker's slots that functions set while they run, e.g. by the queue of a model server."""

from __future__ import annotations

from typing import Protocol


class LimitsSlots(Protocol):
    """The part of a worker whose slots may be limited."""

    @property
    def in_flight(self) -> int:
        """Return how many requests are in flight."""

    def limit_slots(self, source: str, limit: int) -> None:
        """Let `source` limit the requests in flight from now on; 0: take none."""


_worker: LimitsSlots | None = None


def use(worker: LimitsSlots | None) -> None:
    """Let limits count for this worker; None: for none."""
    global _worker  # there is one worker per process
    _worker = worker


def limit(source: str, slots: int) -> None:
    """Limit the slots of this process' worker; no effect where the function set `concurrency`."""
    if _worker is not None:
        _worker.limit_slots(source, slots)


def in_flight() -> int:
    """Return how many requests the worker has in flight; 0 without one."""
    return 0 if _worker is None else _worker.in_flight
