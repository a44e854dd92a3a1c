"""The worker's own HTTP server, as the hooks of Kubernetes use it."""

from __future__ import annotations

import asyncio

import aiohttp

from nvcf_broker.process import free_port
from nvcf_worker.process.health import health_server


async def test_a_worker_that_leaves_without_a_drain_answers_who_waits_for_one() -> None:
    port, drained = free_port(), asyncio.Event()
    began = asyncio.Event()
    tracing = aiohttp.TraceConfig()

    async def sent(*_: object) -> None:
        began.set()

    tracing.on_request_headers_sent.append(sent)

    async def wait_drained(http: aiohttp.ClientSession) -> int:
        async with http.get(f"http://127.0.0.1:{port}/v1/health/drained") as response:
            return response.status

    async with aiohttp.ClientSession(trace_configs=[tracing]) as http, asyncio.timeout(20):
        async with health_server(port, lambda: False, drained=drained):
            waiting = asyncio.create_task(wait_drained(http))
            await began.wait()
            # An answer to a later request shows that the earlier one has arrived.
            async with http.get(f"http://127.0.0.1:{port}/v1/health/live") as response:
                assert response.status == 200
            assert not waiting.done()
        assert await waiting == 200
