"""Our worker behind NVIDIA's services: what the tests of that share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.peers.nvcf_broker import CalloutBroker
from tests.support.peers.nvcf_services import PeerServices
from tests.support.platform.workers import LocalWorker, local_worker, worker_config

StartServed = Callable[..., LocalWorker]


@pytest.fixture(scope="session")
def callout_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CalloutBroker]:
    """Shared by the tests of one process, which run one after the other: each has a callout of its own."""
    broker = CalloutBroker(tmp_path_factory.mktemp("nvcf-nats"))
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
async def services(callout_broker: CalloutBroker) -> AsyncIterator[PeerServices]:
    """Of one region, with a callout that knows the tokens of this test's version only."""
    peer = PeerServices(callout_broker)
    await peer.start()
    yield peer
    await peer.stop()


@pytest.fixture
async def serve(
    services: PeerServices, callout_broker: CalloutBroker, tmp_path: Path
) -> AsyncIterator[StartServed]:
    """Start a worker that presents its token to the callout; all are stopped at the end."""
    started: list[LocalWorker] = []

    def start(handler: Callable[[Any], Any], **options: Any) -> LocalWorker:
        options = {"nats_servers": (callout_broker.address,), **options}
        worker = local_worker(handler, worker_config(services, callout_broker, tmp_path, **options))
        started.append(worker)
        return worker

    yield start
    for worker in started:
        if not worker.task.done():
            await worker.stop()


async def settled(services: PeerServices) -> bool:
    """Whether nothing is queued or in work."""
    return await services.queued() == 0
