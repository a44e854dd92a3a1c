"""Agents as processes, with real child processes, a real broker and an independent control plane."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from nvcf_broker.process import spawn
from nvcf_proto.ids import new_id
from tests.support.peers.icms import Icms, environment, running_icms
from tests.support.peers.icms_broker import AgentCallout
from tests.support.waiting import WAIT, eventually

CLUSTER = "11111111-2222-4333-8444-555555555555"
KEY = "key-of-the-cluster"

# The health port of a worker. Scripts run instead of nvcf_worker, see `script_runner`.
HEALTH = """
import http.server, os, signal, subprocess, sys, threading, time
from pathlib import Path
shared = Path(os.environ["SHARED_CONFIG_DIR"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v1/health/ready" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
def become_ready():
    server = http.server.HTTPServer(("127.0.0.1", int(os.environ["HEALTH_PORT"])), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
def leave(*_):
    (shared / "left").write_text("in order")
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
"""
STEADY = (
    HEALTH
    + "become_ready()\nprint('hello from the function', flush=True)\nwhile True:\n    time.sleep(0.05)\n"
)


@dataclass(frozen=True)
class Function:
    """A function version as a creation message names it."""

    id: str
    function_id: str
    process: dict[str, Any]
    name: str = "hello"
    extra: dict[str, Any] = field(default_factory=dict)
    """More members of the launch specification."""


@dataclass(frozen=True)
class Ordered:
    """A request: its message and the id of its only instance."""

    message: dict[str, Any]

    @property
    def request_id(self) -> str:
        return str(self.message["requestId"])

    @property
    def id(self) -> str:
        kind = "-task" if str(self.message["action"]).endswith("ForTask") else ""
        return f"0-sr-{self.request_id}{kind}"


@dataclass(frozen=True)
class Seen:
    """An instance as its last report shows it."""

    id: str
    request_id: str
    report: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return (self.report.get("details") or {}).get(name)

    @property
    def state(self) -> str:
        return str(self.report["instanceState"])

    @property
    def cause(self) -> str | None:
        return self.report.get("terminationCause")


@dataclass
class Site:
    """The services around the agents of one control plane. The test orders instances."""

    folder: Path
    icms: Icms
    callout: AgentCallout
    time_scale: float = 0.05
    agents: list[asyncio.subprocess.Process] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def agent(self) -> asyncio.subprocess.Process:
        return self.agents[-1]

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def command(self, *extra: str, data: Path | None = None, cluster: str = CLUSTER) -> list[str]:
        key = self.folder / f"{cluster}.key"
        if not key.exists():
            key.write_text(f"{KEY}-{cluster}\n")
        self.icms.add_cluster(cluster, f"{KEY}-{cluster}")
        command = [sys.executable, "-m", "nvcf_agent", "--icms", self.icms.url]
        command += ["--nats", self.icms.broker.address, "--cluster-id", cluster, "--key-file", str(key)]
        command += ["--data", str(data or self.data), "--time-scale", str(self.time_scale)]
        return [*command, "--heartbeat", "0.5", *extra]

    async def launch(self, *extra: str, **places: Any) -> asyncio.subprocess.Process:
        """Start an agent without waiting for it."""
        variables = {**os.environ, "NVCF_TEST_SECRET": "of the agent alone"}
        with (self.folder / "agent.log").open("ab") as log:
            pipe = asyncio.subprocess.PIPE
            agent = await spawn(self.command(*extra, **places), env=variables, stdout=pipe, stderr=log)
        self.agents.append(agent)
        return agent

    async def start_agent(self, *extra: str, **places: Any) -> asyncio.subprocess.Process:
        """Start an agent, and wait until it reads its queues."""
        agent = await self.launch(*extra, **places)
        await self.ready(agent)
        return agent

    async def ready(self, agent: asyncio.subprocess.Process) -> None:
        """Wait until an agent reads its queues."""
        assert agent.stdout is not None
        line = await asyncio.wait_for(agent.stdout.readline(), WAIT)
        assert line, self.log()
        assert json.loads(line)["event"] == "ready"

    async def kill_agent(self) -> None:
        self.agent.kill()
        await self.agent.wait()

    def script_runner(self) -> str:
        """Return an interpreter that runs the function's file itself instead of the worker module."""
        path = self.folder / "bin" / "python"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec {sys.executable} "$3"\n')
        path.chmod(0o755)
        return str(path)

    def version(
        self, script: str = STEADY, *, python: str | None = None, extra: Any = None, **variables: str
    ) -> Function:
        version_id = new_id()
        file = self.folder / f"{version_id}.py"
        file.write_text(script)
        process = {
            "python": python or self.script_runner(),
            "file": str(file),
            "workingDirectory": str(self.folder),
            "environment": variables,
        }
        return Function(version_id, new_id(), process, extra=extra or {})

    def order(
        self,
        function: Function,
        *,
        gpu: str = "CPU",
        type_name: str = "process",
        type_value: str | None = None,
        gpus: int = 0,
        launch: dict[str, Any] | None = None,
        variables: dict[str, str] | None = None,
        **members: Any,
    ) -> Ordered:
        """Return a request with only what NVIDIA's control plane sends, and what a process needs."""
        request_id = members.pop("requestId", None) or new_id()
        lines = {
            "NVCF_WORKER_TOKEN": f"token-of-{request_id}",
            "NVCF_FQDN_GRPC": "127.0.0.1:1",
            "NVCF_FQDN_NATS": "nats://127.0.0.1:2",
            "NCA_ID": "account",
            "FUNCTION_ID": function.function_id,
            "FUNCTION_VERSION_ID": function.id,
            "FUNCTION_NAME": function.name,
            "FUNCTION_TAGS": "blue,green",
            "MAX_REQUEST_CONCURRENCY": "3",
        } | (variables or {})
        message = {
            "requestId": request_id,
            "ncaId": "account",
            "action": "RequestSpotInstances",
            "instanceCount": 1,
            "instanceTypeName": type_name,
            "instanceTypeValue": type_value or type_name,
            "requestedGPUCount": gpus,
            "functionDetails": {
                "functionId": function.function_id,
                "functionVersionId": function.id,
                "functionType": "DEFAULT",
            },
            "launchSpecification": {
                "environment": environment(lines.items()),
                "cloudProvider": "ON-PREM",
                "gpuName": gpu,
                "cacheArtifacts": False,
                "process": function.process,
                **function.extra,
                **(launch or {}),
            },
            **members,
        }
        return Ordered({name: value for name, value in message.items() if value is not None})

    async def send(self, ordered: Ordered, cluster: str = CLUSTER) -> None:
        await self.icms.create(cluster, ordered.message)

    async def create(self, function: Function, cluster: str = CLUSTER, **changes: Any) -> Ordered:
        ordered = self.order(function, **changes)
        await self.send(ordered, cluster)
        return ordered

    async def create_many(self, function: Function, count: int, **changes: Any) -> list[Ordered]:
        return [await self.create(function, **changes) for _ in range(count)]

    async def end(self, *orders: Ordered, cluster: str = CLUSTER) -> None:
        for ordered in orders:
            await self.icms.terminate(cluster, ordered.request_id, ordered.id)

    def seen(self, ordered: Ordered) -> Seen:
        return Seen(ordered.id, ordered.request_id, self.icms.last(ordered.id) or {"instanceState": ""})

    async def until(self, ordered: Ordered, predicate: Callable[[Seen], object]) -> Seen:
        def story() -> str:
            return f"{self.icms.reports.get(ordered.id)}\n{self.log()[-3000:]}"

        await eventually(lambda: predicate(self.seen(ordered)), "the report that is expected", story=story)
        return self.seen(ordered)

    async def state(self, ordered: Ordered, state: str) -> Seen:
        return await self.until(ordered, lambda seen: seen.state == state)

    async def running(self, *orders: Ordered) -> list[Seen]:
        return [await self.state(each, "running") for each in orders]

    async def terminated(self, ordered: Ordered) -> Seen:
        return await self.state(ordered, "terminated")

    def living(self) -> int:
        """Return how many instances there are."""
        return len(own_children(self.agent.pid))

    def home(self, ordered: Ordered) -> Path:
        """Return an instance's folder."""
        return self.data / "instances" / ordered.id

    async def beats(self, count: int) -> None:
        """Wait for some heartbeats: what would come has come."""
        before = len(self.icms.of_kind("heartbeat"))
        await eventually(lambda: len(self.icms.of_kind("heartbeat")) >= before + count)

    def usage(self, gpu: str, cluster: str = CLUSTER) -> dict[str, int] | None:
        """Return what the last heartbeat says about a GPU."""
        beats = self.icms.of_kind("heartbeat", cluster)
        return beats[-1].body["gpuUsage"].get(gpu) if beats else None

    async def free(self, gpu: str, count: int, cluster: str = CLUSTER) -> None:
        """Wait until a cluster reports `count` free GPUs or slots."""
        await eventually(
            lambda: (self.usage(gpu, cluster) or {}).get("available") == count, f"{count} free {gpu}"
        )

    async def settled(self, stream: str, count: int = 0) -> None:
        """Wait until a stream has so many messages."""

        async def there() -> bool:
            return await self.icms.waiting(stream) == count

        await eventually(there, f"{count} messages in {stream}", story=lambda: self.log()[-3000:])


def alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def own_children(pid: int, known: Collection[int] = ()) -> set[int]:
    """Return the ids of a process' living children."""
    children = psutil.Process(pid).children()
    return {each.pid for each in children if each.status() != psutil.STATUS_ZOMBIE} - set(known)


@contextlib.asynccontextmanager
async def running_site(folder: Path) -> AsyncIterator[Site]:
    """Run a broker and a control plane. The test starts the agents."""
    async with running_icms(folder) as (icms, callout):
        site = Site(folder, icms, callout)
        try:
            yield site
        finally:
            for agent in site.agents:
                if agent.returncode is None:
                    agent.kill()
                    await agent.wait()


__all__ = ["CLUSTER", "HEALTH", "STEADY", "Function", "Ordered", "Seen", "Site", "alive", "running_site"]
