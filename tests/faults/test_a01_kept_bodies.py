"""A1: what got a 202 is answered, also when a worker dies that had its large body already."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.platform.gateways import running_platform

EXECUTIONS = Path(__file__).parents[1] / "functions" / "executions.py"


@pytest.mark.parametrize("key", [None, "key"])
@pytest.mark.parametrize("route", ["pexec", "exec"])
async def test_a_running_call_that_got_202_survives_its_worker(
    tmp_path: Path, key: str | None, route: str
) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    environment = {"NOTES": str(notes)}
    async with running_platform(tmp_path, flags=("--ack-wait", "2")) as platform:
        version = await platform.deployed_version()
        worker = await platform.start_worker(version, EXECUTIONS, "once", environment=environment)
        body: dict[str, object] = {"id": "kept", "seconds": 3, "filler": "y" * 100_000}
        headers = {**platform.authorization(), "NVCF-POLL-SECONDS": "1"}
        if key is not None:
            headers["Idempotency-Key"] = key
        url = platform.gateway.url + version.pexec
        async with platform.session.post(
            url, json={"id": "first"}, headers=platform.authorization()
        ) as response:
            assert response.status == 200, "the worker is ready"
        if route == "exec":
            url, body = platform.gateway.url + version.exec, {"requestBody": body}
        async with platform.session.post(url, json=body, headers=headers) as response:
            assert (response.status, response.headers["nvcf-status"]) == (202, "in-progress")
            poll = f"{platform.gateway.url}/v2/nvcf/{route}/status/{response.headers['nvcf-reqid']}"
        worker.kill()
        await worker.wait()
        await platform.start_worker(version, EXECUTIONS, "once", environment=environment)
        async with asyncio.timeout(60):
            while True:
                async with platform.session.get(poll, headers=headers) as response:
                    if response.status != 202:
                        break
        assert response.status == 200
        assert len(notes.read_text().splitlines()) == 3, "executed again"
