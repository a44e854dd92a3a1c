"""Run this project's worker: in the event loop of the test, or as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvcf_worker.control.config import GrpcEndpoint, WorkerConfig
from nvcf_worker.function.handlers import classify
from nvcf_worker.worker import Worker
from tests.support.peers.gateway import PeerGateway
from tests.support.platform.nats_server import NatsServer
from tests.support.waiting import WAIT, eventually


class LocalWorker:
    """A worker in the test's own event loop."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.task = asyncio.create_task(worker.run())

    async def ready(self) -> None:
        """Wait until requests can arrive."""
        await eventually(lambda: self.worker.ready or self.task.done(), "worker ready")
        if self.task.done():
            self.task.result()

    async def stop(self) -> None:
        """Stop the worker as SIGTERM does."""
        self.worker.stop()
        async with asyncio.timeout(WAIT):
            await self.task


def worker_config(
    gateway: PeerGateway, broker: NatsServer, directory: Path, *, instance: str = "instance-1", **changes: Any
) -> WorkerConfig:
    """Return the settings of a worker for the gateway's version."""
    settings: dict[str, Any] = {
        "worker_token": gateway.token,
        "grpc": GrpcEndpoint(gateway.grpc_address, tls=False),
        "nats_servers": (broker.url,),
        "instance_id": instance,
        "function_id": gateway.function_id,
        "version_id": gateway.version_id,
        "shared_dir": directory / instance,
        "function_name": "test-function",
        "nca_id": "account-1",
        "concurrency": 4,
        **changes,
    }
    return WorkerConfig(**settings)


def local_worker(
    handler: Callable[[Any], Any],
    config: WorkerConfig,
    *,
    media_type: str | None = None,
    grace_seconds: float = 10.0,
) -> LocalWorker:
    """Start a worker in this loop."""
    return LocalWorker(Worker(classify(handler, media_type), config, grace_seconds=grace_seconds))


class WorkerProcess:
    """`python -m nvcf_worker FILE[:NAME]` with the platform's environment."""

    def __init__(
        self,
        target: str | list[str],
        gateway: PeerGateway,
        broker: NatsServer,
        directory: Path,
        *,
        instance: str = "instance-1",
        concurrency: int = 2,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = directory / f"{instance}.log"
        self._begin = self.log.stat().st_size if self.log.exists() else 0
        shared = directory / instance
        shared.mkdir(parents=True, exist_ok=True)
        variables = {
            **os.environ,
            "NVCF_WORKER_TOKEN": gateway.token,
            "NVCF_FQDN_GRPC": gateway.grpc_address,
            "NVCF_FQDN_NATS": broker.url,
            "INSTANCE_ID": instance,
            "FUNCTION_ID": gateway.function_id,
            "FUNCTION_VERSION_ID": gateway.version_id,
            "MAX_REQUEST_CONCURRENCY": str(concurrency),
            "SHARED_CONFIG_DIR": str(shared),
            "HEALTH_PORT": "0",
            **(environment or {}),
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nvcf_worker", *([target] if isinstance(target, str) else target)],
                env=variables,
                stdout=log,
                stderr=log,
            )

    def text(self) -> str:
        """Return its output."""
        return self.log.read_bytes()[self._begin :].decode(errors="replace")

    async def ready(self) -> None:
        """Wait until requests can arrive."""
        await eventually(
            lambda: "pulling requests" in self.text() or self.process.poll() is not None,
            "process ready",
        )
        assert self.process.poll() is None, self.text()

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process."""
        self.process.send_signal(number)

    async def exit_code(self, timeout: float = WAIT) -> int:
        """Wait for the end of the process. Returns its exit code."""
        await eventually(lambda: self.process.poll() is not None, "process ended", timeout)
        return int(self.process.returncode)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
