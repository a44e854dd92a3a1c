"""Scale from zero: time until the creation message, and until the response."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from tests.support.platform.compute_plane import Plane, running_plane
from tests.support.platform.gateways import Version

ROUNDS = 10
OTHERS = 50
GOAL = 0.1


async def run() -> None:
    """Call one version at zero repeatedly, alone and among other versions."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_plane(Path(folder), flags=("--log-level", "INFO")) as plane:
            await plane.start_agent()
            version = await plane.deploy({"minInstances": 0}, scaling={"scaleToZeroDelay": 0.2})
            await _report(plane, version, "one version")
            for _ in range(OTHERS):
                await plane.deploy({"minInstances": 0, "clusters": ["nowhere"]})
            await _report(plane, version, f"among {OTHERS} more versions")


async def _report(plane: Plane, version: Version, name: str) -> None:
    messages, answers = [], []
    for number in range(ROUNDS):
        await plane.until(lambda: not plane.live(version), "zero", 120)
        # Let the autoscaler become idle.
        await asyncio.sleep(0.5)
        before, begun = len(plane.creations), time.monotonic()
        answer = await plane.ask(version, number)
        assert answer.status == 200
        messages.append(plane.creations[before].at - begun)
        answers.append(answer.seconds)
    print(
        f"{name}: request to creation message {_spread(messages, 1000)} ms (goal {GOAL * 1000:.0f}), "
        f"to the response {_spread(answers, 1)} s"
    )


def _spread(values: list[float], factor: float) -> str:
    low, middle, high = min(values) * factor, statistics.median(values) * factor, max(values) * factor
    return f"median {middle:.3g} ({low:.3g} to {high:.3g})"
