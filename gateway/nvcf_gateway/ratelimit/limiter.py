"""The rate limiter of one replica: may this call pass, and the 429 response of a call that may not."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass, field

from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.ratelimit.counters import Grant
from nvcf_gateway.ratelimit.permits import Permits
from nvcf_gateway.ratelimit.policy import Limit, limits_of
from nvcf_gateway.ratelimit.shared import SharedCounters
from nvcf_proto.models import FunctionVersion, RateLimit

IDLE_SECONDS = 60.0
MANY_BUCKETS = 50_000
CROWDED_SECONDS = 5.0


@dataclass
class _Bucket:
    """The callers under one set of limits. Calls that arrive while a request to the owner runs wait together,
    and the next request covers all of them."""

    owner_key: str
    permits: Permits
    waiting: deque[asyncio.Future[Grant]] = field(default_factory=deque)
    requesting: bool = False


class RateLimiter:
    """Rate limits of this replica's callers."""

    def __init__(self, shared: SharedCounters, owner: BackgroundTasks) -> None:
        self._shared = shared
        self._owner = owner
        self._buckets: dict[tuple[tuple[Limit, ...], bool], _Bucket] = {}
        self._swept = time.monotonic()

    async def admit(self, version: FunctionVersion, nca_id: str, subject: str) -> None:
        """Count one call of `subject` (account `nca_id`) of the version. Raises HttpProblem 429."""
        if version.rate_limit is None:
            return
        grant = await self.acquire(version.rate_limit, version.id, nca_id, subject)
        if not grant.granted:
            raise too_many_requests(grant)

    async def acquire(self, policy: RateLimit, version_id: str, nca_id: str, subject: str) -> Grant:
        """Count one call if all limits allow it: `granted` is 1, else 0."""
        limits = limits_of(policy, version_id, nca_id, subject)
        if not limits:
            return Grant(1)
        bucket = self._bucket(version_id, limits, borrows=not policy.sync_check)
        now = time.monotonic()
        known = None if bucket.waiting else bucket.permits.acquire(now)
        if known is None and self._shared.owns(version_id) and not bucket.waiting:
            known = self._shared.acquire_locally(limits, 1)
            bucket.permits.granted(known, 1, now, now)
        if known is None:
            return await self._wait(bucket)
        if known.granted and not bucket.requesting and bucket.permits.runs_low(now):
            self._start_request(bucket)
        return known

    def _bucket(self, version_id: str, limits: tuple[Limit, ...], *, borrows: bool) -> _Bucket:
        key = (limits, borrows)
        bucket = self._buckets.get(key)
        if bucket is None:
            self._sweep()
            bucket = self._buckets[key] = _Bucket(version_id, Permits(limits, borrows))
        return bucket

    def _sweep(self) -> None:
        now = time.monotonic()
        pause = IDLE_SECONDS if len(self._buckets) < MANY_BUCKETS else CROWDED_SECONDS
        if now - self._swept < pause:
            return
        self._swept = now
        for key, bucket in list(self._buckets.items()):
            # No count is lost: when the caller comes back, the owner is asked again.
            if not bucket.requesting and now - bucket.permits.last_use > pause:
                del self._buckets[key]

    async def _wait(self, bucket: _Bucket) -> Grant:
        future: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        bucket.waiting.append(future)
        if not bucket.requesting:
            self._start_request(bucket)
        return await future

    def _start_request(self, bucket: _Bucket) -> None:
        bucket.requesting = True
        self._owner.spawn(self._request_for_all(bucket), "rate limit request")

    async def _request_for_all(self, bucket: _Bucket) -> None:
        """Ask the owner until no call waits. A caller that has left leaves its grant to the next one."""
        try:
            while True:
                needed = len(bucket.waiting)
                requested_at = time.monotonic()
                wanted = needed + bucket.permits.advance()
                grant = await self._shared.acquire(bucket.owner_key, bucket.permits.limits, wanted)
                passing = bucket.permits.granted(grant, needed, requested_at, time.monotonic())
                self._resolve(bucket, needed, passing, grant)
                if not bucket.waiting:
                    return
        finally:
            bucket.requesting = False
            for future in bucket.waiting:
                # Only when this task was cancelled: the process ends.
                future.cancel()
            bucket.waiting.clear()

    @staticmethod
    def _resolve(bucket: _Bucket, needed: int, passing: int, grant: Grant) -> None:
        for _ in range(needed):
            future = bucket.waiting.popleft()
            if future.done():
                continue
            if passing:
                passing -= 1
                future.set_result(Grant(1))
            else:
                future.set_result(Grant(0, grant.violated, grant.retry_after))


def too_many_requests(grant: Grant) -> HttpProblem:
    """Return 429 with Retry-After and the RateLimit headers (draft-ietf-httpapi-ratelimit-headers)."""
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
