"""What a replica may let pass without asking, and what it knows to be used up. Pure.

With the asynchronous check a replica borrows calls in advance, as many as it has lately used. A loan is
counted by the lender from the moment it is made, and ends after at most one slot of the shortest window,
which the window's length makes up for: so borrowing never lets more calls pass than the limit says.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from nvcf_gateway.ratelimit.book import Grant
from nvcf_gateway.ratelimit.policy import Limit
from nvcf_gateway.ratelimit.window import slot_length

LONGEST_LOAN_SECONDS = 1.0
# Below this a loan ends before it could be used: every call asks.
SHORTEST_LOAN_SECONDS = 0.005
LARGEST_SHARE = 0.02
"""Largest part of a limit that one loan may take: what is borrowed and not used is lost for the others."""


def loan_seconds(limits: tuple[Limit, ...]) -> float:
    """How long a loan under these limits may be used."""
    shortest = min(limit.seconds for limit in limits)
    return min(LONGEST_LOAN_SECONDS, slot_length(shortest))


@dataclass
class Budget:
    """Calls borrowed under one set of limits. Times are monotonic seconds and passed in."""

    limits: tuple[Limit, ...]
    borrows: bool
    last_use: float = 0.0
    _loans: deque[list[float]] = field(default_factory=deque)
    _refused_until: float = 0.0
    _violated: Limit | None = None
    _lately: int = 0
    _borrowed: int = 0

    def decide(self, now: float) -> Grant | None:
        """Grant or refuse one call out of what is known here; None = the owner has to be asked."""
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
        """Whether it is time to borrow again, before a call has to wait for it."""
        left = sum(loan[0] for loan in self._loans if now < loan[1])
        return self._borrowed > 0 and left * 2 < self._borrowed and now >= self._refused_until

    def advance(self) -> int:
        """How many calls to borrow beyond those that wait: as many as came since last time, within bounds."""
        lately, self._lately = self._lately, 0
        if not self.borrows or loan_seconds(self.limits) < SHORTEST_LOAN_SECONDS:
            return 0
        return min(lately, int(min(limit.calls for limit in self.limits) * LARGEST_SHARE))

    def answered(self, grant: Grant, needed: int, asked_at: float, now: float) -> int:
        """Take in the answer to a question of `asked_at`; returns how many of the `needed` calls may pass."""
        passing = min(grant.granted, needed)
        spare = grant.granted - passing
        self._borrowed = spare
        if spare:
            # Counted from the question: the grant was made after it.
            self._loans.append([spare, asked_at + loan_seconds(self.limits)])
        elif grant.violated is not None:
            self._violated = grant.violated
            self._refused_until = now + grant.retry_after
        return passing
