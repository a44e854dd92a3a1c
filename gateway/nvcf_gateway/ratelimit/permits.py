"""Calls that a replica may let pass without asking, and limits that it knows to be used up. Pure.

With the asynchronous check a replica borrows calls in advance, as many as it has used lately. The lender
counts a loan from the moment it is made. A loan ends after at most one slot of the shortest window, and the
windows hold their counts one slot longer for it: so borrowing never lets more calls pass than the limit
allows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from nvcf_gateway.ratelimit.counters import Grant, slot_length
from nvcf_gateway.ratelimit.policy import Limit

LONGEST_LOAN_SECONDS = 1.0
# A shorter loan would end before it could be used: every call asks instead.
SHORTEST_LOAN_SECONDS = 0.005
LARGEST_SHARE = 0.02
"""Largest part of a limit in one loan: calls that are borrowed and not used are lost for the others."""


def loan_seconds(limits: tuple[Limit, ...]) -> float:
    """Return how long a loan under these limits may be used."""
    shortest = min(limit.seconds for limit in limits)
    return min(LONGEST_LOAN_SECONDS, slot_length(shortest))


@dataclass
class Permits:
    """Calls borrowed under one set of limits. Times are monotonic seconds and passed in."""

    limits: tuple[Limit, ...]
    borrows: bool
    last_use: float = 0.0
    _loans: deque[list[float]] = field(default_factory=deque)
    _refused_until: float = 0.0
    _violated: Limit | None = None
    _lately: int = 0
    _borrowed: int = 0

    def acquire(self, now: float) -> Grant | None:
        """Grant or refuse one call from local knowledge; None = the owner has to be asked."""
        self.last_use = now
        if now < self._refused_until:
            return Grant(0, self._violated, self._refused_until - now)
        self._lately += 1
        while self._loans:
            loan = self._loans[0]
            if loan[0] >= 1 and now < loan[1]:
                loan[0] -= 1
                return Grant(1)
            self._loans.popleft()
        return None

    def runs_low(self, now: float) -> bool:
        """Whether to borrow again now, so that no call has to wait for it."""
        left = sum(loan[0] for loan in self._loans if now < loan[1])
        return self._borrowed > 0 and left * 2 < self._borrowed and now >= self._refused_until

    def advance(self) -> int:
        """Return how many more calls to borrow than wait: as many as came since the last time, bounded."""
        lately, self._lately = self._lately, 0
        if not self.borrows or loan_seconds(self.limits) < SHORTEST_LOAN_SECONDS:
            return 0
        return min(lately, int(min(limit.calls for limit in self.limits) * LARGEST_SHARE))

    def granted(self, grant: Grant, needed: int, requested_at: float, now: float) -> int:
        """Record the owner's reply to the request of `requested_at`; return how many calls pass."""
        passing = min(grant.granted, needed)
        spare = grant.granted - passing
        self._borrowed = spare
        if spare:
            # Counted from the request: the grant was made after it.
            self._loans.append([spare, requested_at + loan_seconds(self.limits)])
        elif grant.violated is not None:
            self._violated = grant.violated
            self._refused_until = now + grant.retry_after
        return passing
