"""A handler that holds the interpreter lock for a minute, twice the queue's ack wait of 30 s."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.peers.gateway import PeerGateway
from tests.support.platform.nats_server import NatsServer
from tests.support.platform.workers import WorkerProcess
from tests.support.waiting import eventually

ISOLATED = Path(__file__).parent.parent / "functions" / "isolated.py"
HOLD_SECONDS = 60
WAIT = 120.0

IN_ONE_PROCESS = f"""
import ctypes

def hog(request):
    ctypes.PyDLL(None).sleep({HOLD_SECONDS})
    return {{"attempt": request.attempt}}
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats", token="broker-token")
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def gateway(broker: NatsServer) -> AsyncIterator[PeerGateway]:
    peer = PeerGateway(broker.url)
    await peer.start()
    yield peer
    await peer.stop()


async def test_in_a_child_process_it_does_not_affect_other_requests(
    gateway: PeerGateway, broker: NatsServer, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    worker = WorkerProcess(
        str(ISOLATED), gateway, broker, tmp_path,
        environment={"NOTES": str(notes), "GATE": str(tmp_path / "gate"), "PROCESSES": "2"},
    )  # fmt: skip
    try:
        await worker.ready()
        hog = await gateway.invoke(path=f"/hog?seconds={HOLD_SECONDS}", headers={"NVCF-POLL-SECONDS": "120"})
        await eventually(lambda: notes.exists() and " hog" in notes.read_text(), "the lock is held")
        asked = 0
        async with asyncio.timeout(WAIT):
            while not hog.head.done():
                assert (await (await gateway.invoke(b"{}", path="/plain")).answer()).status == 200
                asked += 1
                # The pause of a caller between two requests.
                await asyncio.sleep(0.5)
        assert asked > HOLD_SECONDS / 2
        assert json.loads((await hog.answer()).body) == {"attempt": 1}
        assert notes.read_text().count(" hog") == 1
        assert (await gateway.consumer())["num_redelivered"] == 0
        assert worker.text().count("connected to the broker") == 1
    finally:
        worker.kill()


async def test_in_the_worker_s_own_process_there_is_a_warning(
    gateway: PeerGateway, broker: NatsServer, tmp_path: Path
) -> None:
    file = tmp_path / "function.py"
    file.write_text(IN_ONE_PROCESS)
    worker = WorkerProcess(f"{file}:hog", gateway, broker, tmp_path)
    try:
        await worker.ready()
        call = await gateway.invoke()
        await eventually(
            lambda: "hog held the interpreter lock for" in worker.text(), "the warning", timeout=WAIT
        )
        line = next(line for line in worker.text().splitlines() if "held the interpreter lock" in line)
        assert call.request_id in line
        assert 'isolation=\\"process\\"' in line
    finally:
        worker.kill()
