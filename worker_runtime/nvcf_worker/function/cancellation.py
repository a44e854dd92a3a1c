"""The flag that tells a handler that nobody waits for its answer any more."""

from __future__ import annotations

import threading


class Cancellation:
    """False until the request is cancelled; `if request.cancelled: ...` or `request.cancelled.wait(1.0)`."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: threading.Event | None = None

    def __bool__(self) -> bool:
        return self._is_set

    def is_set(self) -> bool:
        """Whether the request was cancelled."""
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Block a handler's thread until the request is cancelled or `timeout` seconds have passed."""
        if self._event is None:
            self._event = threading.Event()
        # Checked after the event is visible to `set`, so that a cancellation in between is not missed.
        if self._is_set:
            return True
        return self._event.wait(timeout)

    def set(self) -> None:
        """Raise the flag."""
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def __repr__(self) -> str:
        return f"Cancellation({self._is_set})"
