"""A Prometheus of the test's own (Debian package prometheus), not the system's service."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nvcf_broker.process import free_port
from tests.support.platform.processes import Child, child_process
from tests.support.waiting import eventually

PROMETHEUS = shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None, reason="Prometheus is missing: apt-get install prometheus (Debian)"
)


@dataclass
class Prometheus:
    """A running Prometheus."""

    url: str
    session: aiohttp.ClientSession

    async def query(self, query: str) -> list[dict[str, Any]]:
        """Return the series of an instant query."""
        async with self.session.get(f"{self.url}/api/v1/query", params={"query": query}) as response:
            document = await response.json()
            assert response.status == 200, f"{query}: {document}"
            return list(document["data"]["result"])

    async def has_data(self, query: str) -> bool:
        """Return whether a query returns any number."""
        return any(each["value"][1] != "NaN" for each in await self.query(query))

    async def targets(self) -> list[dict[str, Any]]:
        """Return the scrape targets, each with `health`, `labels` and `lastError`."""
        async with self.session.get(f"{self.url}/api/v1/targets") as response:
            return list((await response.json())["data"]["activeTargets"])


@contextlib.asynccontextmanager
async def running_prometheus(folder: Path, configuration: str) -> AsyncIterator[Prometheus]:
    """Run Prometheus with that configuration."""
    assert PROMETHEUS is not None
    file = folder / "prometheus.yml"
    await asyncio.to_thread(file.write_text, configuration)
    address = f"127.0.0.1:{free_port()}"
    command = [
        PROMETHEUS, f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={address}", "--log.level=warn",
    ]  # fmt: skip
    async with (
        child_process(command, log=folder / "prometheus.log") as child,
        aiohttp.ClientSession() as session,
    ):
        prometheus = Prometheus(f"http://{address}", session)
        await _ready(prometheus, child)
        yield prometheus


async def _ready(prometheus: Prometheus, child: Child) -> None:
    async def ready() -> bool:
        if not child.running:
            return True
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with prometheus.session.get(f"{prometheus.url}/-/ready") as response:
                return response.status == 200
        return False

    await eventually(ready, "Prometheus is ready", story=child.text)
    assert child.running, child.text()
