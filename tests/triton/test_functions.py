"""A model served through queue and gateway: slots, statistics, and a server that goes away and comes back."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import aiohttp

from nvcf_broker.process import free_port
from tests.support.platform.gateways import running_platform
from tests.support.waiting import eventually
from tests.triton.server import TritonServer

FUNCTION = Path(__file__).parent.parent / "functions" / "triton_model.py"


async def test_a_model_behind_the_queue(tmp_path: Path, triton_server: TritonServer) -> None:
    port = free_port()
    environment = {
        "TRITON_URL": f"grpc://{triton_server.grpc}",
        "TRITON_MODEL": "batched",
        "NVCF_METRICS_ADDRESS": f"127.0.0.1:{port}",
    }
    async with running_platform(tmp_path) as platform, aiohttp.ClientSession() as session:
        version = await platform.deployed_version()
        worker = await platform.start_worker(version, FUNCTION, environment=environment)
        await eventually(lambda: "pulling" in worker.text(), "the worker is up", story=worker.text)
        url, headers = platform.gateway.url + version.pexec, platform.authorization()

        async def call(number: int) -> dict[str, float]:
            async with session.post(url, json={"X": number}, headers=headers) as response:
                assert response.status == 200, await response.text()
                found: dict[str, float] = await response.json()
                return found

        async def metrics() -> str:
            async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
                return await response.text()

        found = await asyncio.gather(*(call(number) for number in range(64)))

        assert [each["Y"] for each in found] == list(range(64))
        assert max(each["SIZE"] for each in found) > 1

        async def counted() -> bool:
            page = await metrics()
            return value(page, "nv_inference_count_total") >= 64 and value(page, "nvcf_batch_size_sum") >= 64

        await eventually(counted, "Triton's statistics are metrics of the worker", story=worker.text)
        page = await metrics()
        assert f'nvcf_function_version_id="{version.id}"' in page
        assert 0 < value(page, "nv_inference_exec_count_total") <= value(page, "nv_inference_count_total")
        assert value(page, "nv_inference_queue_duration_us_total") > 0
        # One instance with batches of 16: a batch runs while the next one waits.
        assert 16 <= value(page, "nvcf_worker_slots") <= 64


def value(page: str, name: str) -> float:
    """Return the value of a metric of Prometheus' text format; 0 if it is not there."""
    found = re.search(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+]+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0
