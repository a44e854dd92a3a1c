"""Versions of a platform that `nvcf-worker triton` serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.platform.gateways import Platform, Version
from tests.support.platform.processes import Child
from tests.support.waiting import eventually
from tests.triton.server import MODELS, START, with_tritonserver

LAUNCHER = Path(__file__).with_name("launcher.py")


async def start_triton(
    platform: Platform,
    version: Version,
    *arguments: str,
    repository: Path | None = MODELS,
    models: Sequence[str] = (),
    concurrency: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Start `nvcf-worker triton` as an agent would. Ended with the platform."""
    given = [*(("--model-repository", str(repository)) if repository else ()), *arguments]
    for model in models:
        given[:0] = ["--model", model]
    return await platform.start_worker(
        version,
        LAUNCHER,
        concurrency=concurrency,
        environment={
            "PATH": with_tritonserver()["PATH"],
            "TRITON_ARGUMENTS": "\n".join(given),
            **(environment or {}),
        },
    )


async def serving(worker: Child) -> None:
    """Wait until the models are ready."""

    def ready() -> bool:
        assert worker.running, worker.text()
        return "the function's server on port" in worker.text()

    await eventually(ready, "it serves", START, story=worker.text)
