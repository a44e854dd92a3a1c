"""A gateway and a worker that have to live on, whatever reaches their doors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from nats.aio.client import Client

from nvcf_proto.ids import new_id
from tests.fuzz.mutation import Mutator
from tests.support.peers.worker import PeerWorker, peer_worker
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.platform.processes import Child

FUNCTION = Path(__file__).parents[1] / "functions" / "echo.py"


@dataclass
class Report:
    """What one door got, and what it should not have done."""

    door: str
    sent: int = 0
    faults: list[str] = field(default_factory=list)

    def answered(self, status: int, body: bytes, sent: bytes) -> None:
        """Count an answer; a 500 is a fault."""
        if status == 500:
            self.faults.append(f"HTTP 500 for {sent[:200]!r}: {body[:200]!r}")


@dataclass(frozen=True)
class Budget:
    """How long one door is tried: until `time.monotonic()` has passed `deadline` or `inputs` were sent."""

    deadline: float
    inputs: int

    def spent(self, report: Report) -> bool:
        """Whether it is enough."""
        return report.sent >= self.inputs or time.monotonic() >= self.deadline


@dataclass
class Scene:
    """A gateway, a version with a real worker, and one whose requests a peer answers by hand."""

    platform: Platform
    client: Client
    served: Version
    worker: Child
    by_hand: Version
    peer: PeerWorker
    seed: int

    def mutator(self, door: str, number: int = 0) -> Mutator:
        """Inputs for one door."""
        return Mutator(f"{self.seed}/{door}/{number}")


@contextlib.asynccontextmanager
async def scene(directory: Path, seed: int) -> AsyncIterator[Scene]:
    """Everything running."""
    async with running_platform(
        directory, flags=("--log-level", "INFO", "--sessions", "127.0.0.1:0")
    ) as platform:
        client = await platform.broker_client()
        served = await platform.deployed_version("served")
        by_hand = await platform.deployed_version("by-hand")
        worker = await platform.start_worker(served, FUNCTION, "echo", concurrency=32)
        async with peer_worker(platform, by_hand) as peer:
            found = Scene(platform, client, served, worker, by_hand, peer, seed)
            await serves(found)
            try:
                yield found
            finally:
                await client.close()


async def serves(found: Scene) -> None:
    """A good request gets its answer, whatever happened before."""
    platform, body = found.platform, new_id().encode()
    url = platform.gateway.url + found.served.pexec
    async with platform.session.post(url, data=body, headers=platform.authorization()) as response:
        got = await response.read()
        assert (response.status, got) == (200, body), (response.status, got)


def complaints(found: Scene) -> list[str]:
    """Errors in the logs that no input may cause: unexpected exceptions."""
    signs = ("Traceback", "internal error", "never retrieved")
    texts = (found.platform.gateway.child.text(), found.worker.text())
    return [line for text in texts for line in text.splitlines() if any(sign in line for sign in signs)]


async def until(budget: Budget, report: Report, step: Callable[[], Awaitable[None]]) -> None:
    """Repeat until the budget is spent."""
    while not budget.spent(report):
        await step()
