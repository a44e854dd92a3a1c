"""What the doors ask: may this call pass? And the answer of those that may not."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections import deque
from dataclasses import dataclass, field

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.owner import TaskOwner
from nvcf_gateway.ratelimit.book import Grant
from nvcf_gateway.ratelimit.budget import Budget
from nvcf_gateway.ratelimit.policy import Limit, limits_of
from nvcf_gateway.ratelimit.shared import SharedCounts
from nvcf_proto.models import FunctionVersion, RateLimit

IDLE_SECONDS = 60.0
MANY_BUDGETS = 50_000
CROWDED_SECONDS = 5.0


@dataclass
class _Desk:
    """The callers under one set of limits. Those that come while the owner is asked wait together, and are
    asked for by one question."""

    owner_key: str
    budget: Budget
    waiting: deque[asyncio.Future[Grant]] = field(default_factory=deque)
    asking: bool = False


class RateLimiter:
    """Rate limits of this replica's callers."""

    def __init__(self, shared: SharedCounts, owner: TaskOwner) -> None:
        self._shared = shared
        self._owner = owner
        self._desks: dict[tuple[tuple[Limit, ...], bool], _Desk] = {}
        self._tidied = time.monotonic()

    async def admit(self, version: FunctionVersion, nca_id: str, subject: str) -> None:
        """Count one call of `subject` (account `nca_id`) of the version. Raises HttpProblem 429."""
        if version.rate_limit is None:
            return
        grant = await self.check(version.rate_limit, version.id, nca_id, subject)
        if not grant.granted:
            raise refusal(grant)

    async def check(self, policy: RateLimit, version_id: str, nca_id: str, subject: str) -> Grant:
        """Count one call if all limits allow it: `granted` is 1, else 0."""
        limits = _limits(policy, version_id, nca_id, subject)
        if not limits:
            return Grant(1)
        desk = self._desk(version_id, limits, borrows=not policy.sync_check)
        now = time.monotonic()
        known = None if desk.waiting else desk.budget.decide(now)
        if known is None and self._shared.owns(version_id) and not desk.waiting:
            known = self._shared.take_here(limits, 1)
            desk.budget.answered(known, 1, now, now)
        if known is None:
            return await self._ask(desk)
        if known.granted and not desk.asking and desk.budget.runs_low(now):
            self._start_asking(desk)
        return known

    def _desk(self, version_id: str, limits: tuple[Limit, ...], *, borrows: bool) -> _Desk:
        key = (limits, borrows)
        desk = self._desks.get(key)
        if desk is None:
            self._tidy()
            desk = self._desks[key] = _Desk(version_id, Budget(limits, borrows))
        return desk

    def _tidy(self) -> None:
        now = time.monotonic()
        pause = IDLE_SECONDS if len(self._desks) < MANY_BUDGETS else CROWDED_SECONDS
        if now - self._tidied < pause:
            return
        self._tidied = now
        for key, desk in list(self._desks.items()):
            # What is known to be used up is asked anew when the caller comes back: no count is lost here.
            if not desk.asking and now - desk.budget.last_use > pause:
                del self._desks[key]

    async def _ask(self, desk: _Desk) -> Grant:
        future: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        desk.waiting.append(future)
        if not desk.asking:
            self._start_asking(desk)
        return await future

    def _start_asking(self, desk: _Desk) -> None:
        desk.asking = True
        self._owner.spawn(self._ask_for_all(desk), "rate limit question")

    async def _ask_for_all(self, desk: _Desk) -> None:
        """Ask until nobody waits. A caller that left meanwhile leaves its grant to the next one."""
        try:
            while True:
                asked_for = len(desk.waiting)
                asked_at = time.monotonic()
                wanted = asked_for + desk.budget.advance()
                grant = await self._shared.take(desk.owner_key, desk.budget.limits, wanted)
                passing = desk.budget.answered(grant, asked_for, asked_at, time.monotonic())
                self._answer(desk, asked_for, passing, grant)
                if not desk.waiting:
                    return
        finally:
            desk.asking = False
            for future in desk.waiting:
                # Only when this task was cancelled: the process ends.
                future.cancel()
            desk.waiting.clear()

    @staticmethod
    def _answer(desk: _Desk, asked_for: int, passing: int, grant: Grant) -> None:
        for _ in range(asked_for):
            future = desk.waiting.popleft()
            if future.done():
                continue
            if passing:
                passing -= 1
                future.set_result(Grant(1))
            else:
                future.set_result(Grant(0, grant.violated, grant.retry_after))


@functools.lru_cache(maxsize=16384)
def _limits(policy: RateLimit, version_id: str, nca_id: str, subject: str) -> tuple[Limit, ...]:
    return limits_of(policy, version_id, nca_id, subject)


def refusal(grant: Grant) -> HttpProblem:
    """429 with Retry-After and the RateLimit headers (draft-ietf-httpapi-ratelimit-headers)."""
    limit, seconds = grant.violated, max(1, math.ceil(grant.retry_after))
    headers = {"Retry-After": str(seconds)}
    if limit is None:
        return HttpProblem(429, "rate limit exceeded", headers=headers)
    headers["RateLimit-Policy"] = f'"{limit.name}";q={limit.calls};w={limit.seconds}'
    headers["RateLimit"] = f'"{limit.name}";r=0;t={seconds}'
    return HttpProblem(
        429,
        f"rate limit exceeded: {limit.calls} calls in {limit.seconds} s; again in {seconds} s",
        headers=headers,
        **{"violated-policies": [limit.name]},
    )
