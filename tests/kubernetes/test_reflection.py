"""What the agent writes into the status of the chart's NVCFBackend, at a real API server."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.kinds import NVCF_BACKEND
from nvcf_agent.kubernetes.leadership import no_trace_of_a_leader
from nvcf_agent.kubernetes.reflection import Reflection
from nvcf_proto.icms.reports import GpuUsage
from tests.kubernetes.charts.rendering import one, rendered
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("crds")


@pytest.mark.parametrize("case", ["job", "everything"])
async def test_gpus_come_change_and_go(api: Api, namespace: str, case: str) -> None:
    body = one(rendered("nvcf-agent", case), "NVCFBackend", "nvcf-agent")
    metadata = body["metadata"] | {"namespace": namespace}
    await api.create(NVCF_BACKEND, body | {"metadata": metadata})
    assert await no_trace_of_a_leader(api, (namespace, "nvcf-agent"), namespace)
    usage: dict[str, GpuUsage] = {}
    reflection = Reflection(api, "nvcf-agent", namespace, "1.2.3", "v1.35.4", lambda: usage)
    writing = asyncio.create_task(reflection.run())

    async def shows(expected: dict[str, dict[str, int]]) -> bool:
        status = ((await api.get(NVCF_BACKEND, "nvcf-agent", namespace)) or {}).get("status") or {}
        return status.get("version") == "1.2.3" and (status.get("gpuUsage") or {}) == expected

    steps: list[dict[str, dict[str, int]]] = [
        {},
        {"H100": {"capacity": 8, "allocated": 1, "available": 7}},
        # Nodes went away while instances ran on them.
        {
            "H100": {"capacity": 0, "allocated": 9, "available": 0},
            "CPU": {"capacity": 4, "allocated": 0, "available": 4},
        },
        {},
    ]
    try:
        for step in steps:
            usage = {name: GpuUsage(**numbers) for name, numbers in step.items()}
            await eventually(partial(shows, step), f"the status shows {step}", 20.0)
        assert not await no_trace_of_a_leader(api, (namespace, "nvcf-agent"), namespace)
    finally:
        writing.cancel()
        await asyncio.wait({writing})
