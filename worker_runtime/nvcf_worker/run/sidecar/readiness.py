"""When a server counts as ready, as lost, or as given up. No I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

FAILURES_TO_LOSE = 3
"""Failed checks in a row before a ready server counts as lost: one slow answer must not stop the queue."""

QUICK_SECONDS = 10.0
QUICK_PAUSE = 0.1
PAUSE = 1.0


class Turn(enum.Enum):
    """What a check changed."""

    NOTHING = "nothing"
    READY = "ready"
    LOST = "lost"
    GIVEN_UP = "given up"


@dataclass
class Readiness:
    """Judges the checks of one server. Times are seconds of any steady clock.

    A server that is not ready for `ready_timeout` seconds, from its start or from the moment it was lost,
    is given up. A ready one is checked every `interval` seconds.
    """

    ready_timeout: float
    interval: float
    since: float
    ready: bool = False
    _failures: int = field(default=0, init=False)

    def checked(self, healthy: bool, now: float) -> Turn:
        """Take the outcome of one check."""
        if healthy:
            self._failures = 0
            turn = Turn.NOTHING if self.ready else Turn.READY
            self.ready = True
            return turn
        self._failures += 1
        if self.ready:
            if self._failures < FAILURES_TO_LOSE:
                return Turn.NOTHING
            self.ready = False
            self.since = now
            return Turn.LOST
        return Turn.GIVEN_UP if now - self.since >= self.ready_timeout else Turn.NOTHING

    def pause(self, now: float) -> float:
        """Seconds until the next check."""
        if self.ready:
            # A doubtful server is looked at again soon.
            return min(self.interval, PAUSE) if self._failures else self.interval
        quick = QUICK_PAUSE if now - self.since < QUICK_SECONDS else PAUSE
        return max(0.0, min(quick, self.since + self.ready_timeout - now))
