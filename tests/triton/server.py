"""One running tritonserver on free ports."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from nvcf_broker.process import free_port
from tests.support.platform.processes import Child, end, start
from tests.support.waiting import eventually
from tests.triton.installed import SHM_PREFIX, tritonserver

MODELS = Path(__file__).parent / "models"
"""The model repository of the tests. `add_sub`, `identity` and others; `broken` cannot be loaded."""
START = 150.0
"""Seconds for its start on a busy machine; on a quiet one it takes two."""
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class TritonServer:
    """A running server. The ports are on 127.0.0.1; `repository` is its model repository."""

    child: Child
    repository: Path
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def ports(self) -> tuple[int, int, int]:
        """Its ports as `start_server` takes them."""
        return self.http_port, self.grpc_port, self.metrics_port

    @property
    def http(self) -> str:
        """Its HTTP address as tritonclient.http takes it."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        """Its gRPC address as tritonclient.grpc takes it."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        """The URL of its Prometheus metrics."""
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    async def ready(self) -> bool:
        """Whether it says that it is ready."""
        timeout = aiohttp.ClientTimeout(total=5)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"http://{self.http}/v2/health/ready") as response,
            ):
                return response.status == 200
        return False


async def start_server(
    log: Path,
    *,
    repository: Path = MODELS,
    models: Sequence[str] = (),
    options: Sequence[str] = (),
    ports: tuple[int, int, int] | None = None,
) -> TritonServer:
    """Start a server with explicit model control and wait until it is ready. `stop_server` has to follow.

    models: loaded at the start. options: more arguments of tritonserver. ports: of HTTP, gRPC and metrics.
    """
    http, grpc, metrics = ports or (free_port(), free_port(), free_port())
    command = [
        str(tritonserver()),
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")),
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        f"--metrics-port={metrics}",
        *options,
    ]
    server = TritonServer(await start(command, log=log), repository, http, grpc, metrics)

    async def ready() -> bool:
        if not server.child.running:
            raise AssertionError(f"tritonserver ended: {server.child.text()[-4000:]}")
        return await server.ready()

    try:
        await eventually(ready, "tritonserver is ready", START, story=server.child.text, interval=0.05)
    except BaseException:
        await stop_server(server)
        raise
    return server


async def stop_server(server: TritonServer) -> None:
    """Kill a server and remove what it leaves in shared memory."""
    await end(server.child)
    # A killed server's Python backends live a little longer, and hold the other end of its pipe.
    server.child.process._transport.close()  # type: ignore[attr-defined]
    remove_shared_memory(server.child.pid)


@contextlib.asynccontextmanager
async def running_server(log: Path, **options: object) -> AsyncIterator[TritonServer]:
    """Run a server for the length of a context; arguments as for `start_server`."""
    server = await start_server(log, **options)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        await stop_server(server)


def remove_shared_memory(pid: int) -> None:
    """Remove the shared memory of a tritonserver that has ended."""
    for file in SHARED_MEMORY.glob(f"{SHM_PREFIX}{pid}-*"):
        file.unlink(missing_ok=True)


def copied_models(target: Path, *names: str) -> Path:
    """Copy models into a repository that a test may change."""
    for name in names:
        shutil.copytree(MODELS / name, target / name)
    return target


def with_tritonserver(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which `tritonserver` is on PATH, as in NVIDIA's image."""
    found = dict(os.environ if environment is None else environment)
    return {**found, "PATH": f"{tritonserver().parent}:{found.get('PATH', os.defpath)}"}
