"""Cost of one rate limit check: at the replica that counts, at another one, waiting and borrowing.

Both replicas live in this process, so the CPU times of the remote rows hold the work of both.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from nvcf_broker.connection import connect_broker
from nvcf_broker.requests import ReplyInbox
from nvcf_broker.server import LocalBroker
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.ratelimit.limiter import RateLimiter
from nvcf_gateway.ratelimit.members import owner_of
from nvcf_gateway.ratelimit.shared import SharedCounters
from nvcf_proto.ids import new_id
from nvcf_proto.models import RateLimit

CHECKS = 20_000
CONCURRENCY = 32
PLENTY = "900000000-H"


@contextlib.asynccontextmanager
async def _replica(broker: LocalBroker, name: str) -> AsyncIterator[RateLimiter]:
    async with contextlib.AsyncExitStack() as stack:
        client = await connect_broker(broker.url, broker.credentials_file, name=name)
        stack.push_async_callback(client.close)
        owner = await stack.enter_async_context(BackgroundTasks())
        requests = ReplyInbox(client)
        await requests.start()
        shared = SharedCounters(client, requests, name)
        await shared.start(stack)
        yield RateLimiter(shared, owner)


async def _measure(
    title: str, limiter: RateLimiter, policy: RateLimit, version_id: str, *, concurrency: int, checks: int
) -> None:
    latencies: list[float] = []
    left = checks

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            begun = time.perf_counter()
            await limiter.acquire(policy, version_id, "account", "apikey:000000000000")
            latencies.append(time.perf_counter() - begun)

    await limiter.acquire(policy, version_id, "account", "apikey:000000000000")
    cpu, begun = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(caller())
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    p99 = sorted(latencies)[int(len(latencies) * 0.99)]
    print(
        f"{title:<44}{checks / seconds:>10,.0f}/s{cpu / checks * 1e6:>9.1f} us CPU"
        f"{statistics.median(latencies) * 1e6:>9.1f} us p50{p99 * 1e6:>9.1f} us p99",
        flush=True,
    )


def _version_of(replica: str, replicas: frozenset[str]) -> str:
    while owner_of(version_id := new_id(), replicas) != replica:
        pass
    return version_id


async def run() -> None:
    """Print a line for each kind of check."""
    names = frozenset(("here", "there"))
    sync, borrowing = RateLimit(rate=PLENTY, sync_check=True), RateLimit(rate=PLENTY)
    both = RateLimit(rate=PLENTY, user_rate=PLENTY, sync_check=True)
    full = RateLimit(rate="1-D", sync_check=True)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            LocalBroker(Path(folder)) as broker,
            _replica(broker, "here") as here,
            _replica(broker, "there"),
        ):
            near, far = _version_of("here", names), _version_of("there", names)
            for title, policy, version_id, concurrency, checks in (
                ("counted here", sync, near, 1, CHECKS),
                ("counted here, account and user", both, near, 1, CHECKS),
                ("refused, known here", full, far, 1, CHECKS),
                ("counted there, waiting, one caller", sync, far, 1, CHECKS // 10),
                (f"counted there, waiting, {CONCURRENCY} callers", sync, far, CONCURRENCY, CHECKS),
                ("counted there, borrowing, one caller", borrowing, far, 1, CHECKS),
                (f"counted there, borrowing, {CONCURRENCY} callers", borrowing, far, CONCURRENCY, CHECKS),
            ):
                await _measure(title, here, policy, version_id, concurrency=concurrency, checks=checks)
