"""A real broker a test process, a peer's gateway and workers a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.worker.isolated_worker import start_isolated  # noqa: F401 - a fixture
from tests.contract.worker.services import callout_broker, serve, services  # noqa: F401 - fixtures
from tests.support.peers.gateway import PeerGateway
from tests.support.platform.nats_server import NatsServer
from tests.support.platform.workers import LocalWorker, WorkerProcess, local_worker, worker_config

StartWorker = Callable[..., LocalWorker]
StartProcess = Callable[..., WorkerProcess]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Shared by the tests of one process; each test has a version id of its own."""
    server = NatsServer(tmp_path_factory.mktemp("nats"), token="broker-token")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[NatsServer]:
    """A broker that a test may kill."""
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


@pytest.fixture
async def start_worker(
    gateway: PeerGateway, broker: NatsServer, tmp_path: Path
) -> AsyncIterator[StartWorker]:
    """Start a worker in this loop; all are stopped at the end."""
    started: list[LocalWorker] = []

    def start(handler: Callable[[Any], Any], **options: Any) -> LocalWorker:
        rest = {name: options.pop(name) for name in ("media_type", "grace_seconds") if name in options}
        worker = local_worker(handler, worker_config(gateway, broker, tmp_path, **options), **rest)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        if not worker.task.done():
            await worker.stop()


@pytest.fixture
def start_process(gateway: PeerGateway, broker: NatsServer, tmp_path: Path) -> Iterator[StartProcess]:
    """Start `python -m nvcf_worker` on a file with this source; all are killed at the end."""
    started: list[WorkerProcess] = []

    def start(source: str, name: str | None = None, **options: Any) -> WorkerProcess:
        file = tmp_path / "function.py"
        file.write_text(source)
        target = str(file) if name is None else f"{file}:{name}"
        process = WorkerProcess(
            target, options.pop("gateway", gateway), options.pop("broker", broker), tmp_path, **options
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
