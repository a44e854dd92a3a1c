"""The processes under test: a gateway and a worker that must survive any input."""

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
    """The number of inputs sent to one listener, and its faults."""

    listener: str
    sent: int = 0
    faults: list[str] = field(default_factory=list)

    def check(self, status: int, body: bytes, sent: bytes) -> None:
        """Record a fault if the status is 500."""
        if status == 500:
            self.faults.append(f"HTTP 500 for {sent[:200]!r}: {body[:200]!r}")


@dataclass(frozen=True)
class Budget:
    """The limits for one listener: `inputs`, and `deadline` on the clock `time.monotonic()`."""

    deadline: float
    inputs: int

    def spent(self, report: Report) -> bool:
        """Return whether a limit is reached."""
        return report.sent >= self.inputs or time.monotonic() >= self.deadline


@dataclass
class Target:
    """A gateway, a version with a real worker, and a version whose requests a scripted peer takes."""

    platform: Platform
    client: Client
    served: Version
    worker: Child
    by_hand: Version
    peer: PeerWorker
    seed: int

    def mutator(self, listener: str, number: int = 0) -> Mutator:
        """Return a source of inputs for one listener."""
        return Mutator(f"{self.seed}/{listener}/{number}")


@contextlib.asynccontextmanager
async def running_target(directory: Path, seed: int) -> AsyncIterator[Target]:
    """Run the target."""
    async with running_platform(
        directory, flags=("--log-level", "INFO", "--sessions", "127.0.0.1:0")
    ) as platform:
        client = await platform.broker_client()
        served = await platform.deployed_version("served")
        by_hand = await platform.deployed_version("by-hand")
        worker = await platform.start_worker(served, FUNCTION, "echo", concurrency=32)
        async with peer_worker(platform, by_hand) as peer:
            target = Target(platform, client, served, worker, by_hand, peer, seed)
            await check_serving(target)
            try:
                yield target
            finally:
                await client.close()


async def check_serving(target: Target) -> None:
    """Assert that a good request gets its response."""
    platform, body = target.platform, new_id().encode()
    url = platform.gateway.url + target.served.pexec
    async with platform.session.post(url, data=body, headers=platform.authorization()) as response:
        got = await response.read()
        assert (response.status, got) == (200, body), (response.status, got)


def complaints(target: Target) -> list[str]:
    """Return log lines that no input may cause: unexpected exceptions."""
    signs = ("Traceback", "internal error", "never retrieved")
    texts = (target.platform.gateway.child.text(), target.worker.text())
    return [line for text in texts for line in text.splitlines() if any(sign in line for sign in signs)]


async def repeat(budget: Budget, report: Report, step: Callable[[], Awaitable[None]]) -> None:
    """Repeat `step` until the budget is spent."""
    while not budget.spent(report):
        await step()
