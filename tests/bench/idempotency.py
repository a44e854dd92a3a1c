"""Keyed calls per second and broker requests per call, when nothing is kept and when much is."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import tempfile
import time
from pathlib import Path

import aiohttp
from nats.aio.client import Client

from nvcf_proto.ids import new_id
from tests.bench.throughput import BODY, FUNCTIONS
from tests.support.platform.gateways import Platform, Version, messages_in, running_platform

KEPT = int(os.environ.get("NVCF_BENCH_KEPT", "100000"))
CALLERS = 32
SECONDS = 5.0
COUNTED = 200
FLAGS = ("--quota", "kept-answers=10000000", "--quota", "kept-bytes=100000000000")


async def keyed_calls(
    platform: Platform, version: Version, *, seconds: float = 0.0, count: int = 0, callers: int = CALLERS
) -> float:
    """Make `count` calls, or those of `seconds`, each with a key of its own. Returns their rate."""
    url, made = platform.gateway.url + version.pexec, 0
    numbers = itertools.count()
    started = time.perf_counter()
    prefix = f"{time.time_ns()}-"

    async def caller(session: aiohttp.ClientSession) -> None:
        nonlocal made
        while True:
            number = next(numbers)
            if (count and number >= count) or (seconds and time.perf_counter() - started >= seconds):
                return
            headers = {**platform.authorization(), "Idempotency-Key": f"{prefix}{number}"}
            async with session.post(url, data=BODY, headers=headers) as response:
                body = await response.read()
            assert body == BODY, (response.status, body)
            made += 1

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(callers):
            group.create_task(caller(session))
    return made / (time.perf_counter() - started)


async def _broker_requests(platform: Platform, client: Client, version: Version) -> float:
    """Return how many requests to JetStream a call costs the gateway."""
    seen = 0

    async def count(message: object) -> None:
        nonlocal seen
        seen += 1

    subjects = ("$JS.API.>", "$O.>", "$KV.nvcf_idempotency.>", "requestToFunctionVersion.>", "rq.>")
    subscriptions = [await client.subscribe(subject, cb=count) for subject in subjects]
    await client.flush()
    await keyed_calls(platform, version, count=COUNTED, callers=1)
    await client.flush()
    for subscription in subscriptions:
        await subscription.unsubscribe()
    return seen / COUNTED


async def _fill(client: Client, count: int) -> None:
    """Store claims and answers as a gateway does, without the calls."""
    for number in range(count):
        request_id = new_id()
        name = base64.urlsafe_b64encode(request_id.encode()).decode()
        claim = {"requestId": request_id, "versionId": "", "region": "local", "fingerprint": "0" * 64}
        info = {"name": request_id, "nuid": f"fill{number}", "size": len(BODY), "chunks": 1, "headers": {}}
        await client.publish(f"$KV.nvcf_idempotency.{request_id}", json.dumps(claim).encode())
        await client.publish(f"$O.nvcf_results_local.C.fill{number}", BODY)
        await client.publish(f"$O.nvcf_results_local.M.{name}", json.dumps(info).encode())
        if number % 500 == 0:
            # No faster than the broker stores it.
            await messages_in(client, "OBJ_nvcf_results_local")


async def run() -> None:
    """Measure with an empty store, fill it, and measure again."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_platform(Path(folder), flags=FLAGS) as platform:
            version = await platform.deployed_version()
            await platform.start_worker(version, FUNCTIONS / "echo.py", "echo", concurrency=64)
            client = await platform.broker_client()
            await keyed_calls(platform, version, count=100)
            print(f"{'kept':>8} {'calls/s':>8} {'broker requests a call':>24}", flush=True)
            rates = []
            for target in (0, KEPT):
                kept = await messages_in(client, "KV_nvcf_idempotency")
                await _fill(client, target - kept)
                kept = await messages_in(client, "KV_nvcf_idempotency")
                each = await _broker_requests(platform, client, version)
                rates.append(await keyed_calls(platform, version, seconds=SECONDS))
                print(f"{kept:>8} {rates[-1]:>8.0f} {each:>24.2f}", flush=True)
            print(f"rate with {KEPT:,} kept: {rates[1] / rates[0]:.2f} of that with none")
            info = await client.request("$JS.API.STREAM.INFO.OBJ_nvcf_results_local", b"", timeout=30)
            print(f"bytes in the store: {json.loads(info.data)['state']['bytes']:,}")
            await client.close()
