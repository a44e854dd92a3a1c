"""A worker of tests/functions/isolated.py for the tests of process isolation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.peers.gateway import PeerGateway
from tests.support.platform.nats_server import NatsServer
from tests.support.platform.workers import WorkerProcess
from tests.support.waiting import eventually

FUNCTION = Path(__file__).parent.parent.parent / "functions" / "isolated.py"


class Isolated:
    """A worker of tests/functions/isolated.py, and what its handlers noted."""

    def __init__(self, process: WorkerProcess, notes: Path, gate: Path) -> None:
        self.process = process
        self.path = notes
        self.gate = gate

    def notes(self, text: str) -> list[int]:
        """Process ids that noted this."""
        if not self.path.exists():
            return []
        lines = [line.split(" ", 1) for line in self.path.read_text().splitlines()]
        return [int(pid) for pid, noted in lines if noted == text]

    async def ready(self, processes: int = 1) -> None:
        """Wait until requests can arrive and be run."""
        await self.process.ready()
        await eventually(lambda: self.process.text().count("is ready (pid") == processes, "processes ready")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.process.pid).children()


StartIsolated = Callable[..., Isolated]


@pytest.fixture
async def start_isolated(
    gateway: PeerGateway, broker: NatsServer, tmp_path: Path
) -> AsyncIterator[StartIsolated]:
    started: list[WorkerProcess] = []

    def begin(**environment: str) -> Isolated:
        number = len(started)
        notes, gate = tmp_path / f"notes-{number}", tmp_path / f"gate-{number}"
        variables = {"NOTES": str(notes), "GATE": str(gate), **environment}
        process = WorkerProcess(
            str(FUNCTION), gateway, broker, tmp_path, instance=f"instance-{number}", environment=variables
        )
        started.append(process)
        return Isolated(process, notes, gate)

    yield begin
    for process in started:
        process.kill()


async def ask(gateway: PeerGateway, path: str, body: bytes = b"{}", **options: Any) -> Any:
    async with asyncio.timeout(30):
        return await (await gateway.invoke(body, path=path, **options)).answer()
