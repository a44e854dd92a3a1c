"""Agents as processes, with a real broker and real child processes. The test acts as the autoscaler."""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web

from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.kv import KvMirror
from nvcf_broker.process import spawn
from nvcf_broker.server import LocalBroker
from nvcf_proto.compute import (
    CLUSTERS_BUCKET,
    CREATE_STREAM,
    TERMINATE_STREAM,
    Cluster,
    CreationMessage,
    TerminationMessage,
    terminate_subject,
)
from nvcf_proto.ids import new_id
from nvcf_proto.models import (
    INSTANCES_BUCKET,
    VERSIONS_BUCKET,
    FunctionVersion,
    Instance,
    InstanceState,
    ProcessSource,
)
from tests.support.waiting import WAIT

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


@dataclass
class Tokens:
    """A gateway's token route."""

    url: str = ""
    working: bool = True
    requests: list[dict[str, str]] = field(default_factory=list)

    async def respond(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append({**body, "key": request.headers.get("Authorization", "")})
        if not self.working:
            return web.json_response({"title": "Unavailable"}, status=503)
        return web.json_response(
            {"token": f"token-of-{body['instanceId']}", "expiration": "2030-01-01T00:00:00Z"}
        )


@dataclass
class Site:
    """The services around the agents of one broker. The test acts as the autoscaler."""

    folder: Path
    broker: LocalBroker
    client: BrokerClient
    tokens: Tokens
    versions: KvMirror[FunctionVersion]
    instances: KvMirror[Instance]
    clusters: KvMirror[Cluster]
    agents: list[asyncio.subprocess.Process] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def agent(self) -> asyncio.subprocess.Process:
        return self.agents[-1]

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    async def start_agent(self, *extra: str, data: Path | None = None) -> asyncio.subprocess.Process:
        key = self.folder / "agent.key"
        key.write_text("nvcf-agent-key\n")
        command = [sys.executable, "-m", "nvcf_agent", "--nats", self.broker.url]
        command += ["--nats-credentials", str(self.broker.credentials_file)]
        command += ["--gateway-http", self.tokens.url, "--worker-grpc", "127.0.0.1:1"]
        command += ["--worker-nats", self.broker.url, "--key-file", str(key)]
        command += ["--data", str(data or self.data), *extra]
        environment = {**os.environ, "NVCF_TEST_SECRET": "of the agent alone"}
        with (self.folder / "agent.log").open("ab") as log:
            agent = await spawn(command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=log)
        self.agents.append(agent)
        assert agent.stdout is not None
        line = await asyncio.wait_for(agent.stdout.readline(), WAIT)
        assert line, self.log()
        assert json.loads(line)["event"] == "ready"
        return agent

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

    async def version(self, script: str, *, python: str | None = None, **environment: str) -> FunctionVersion:
        version_id = new_id()
        file = self.folder / f"{version_id}.py"
        file.write_text(script)
        source = ProcessSource(
            python=python or self.script_runner(),
            file=str(file),
            working_directory=str(self.folder),
            environment=environment,
        )
        version = FunctionVersion(
            id=version_id,
            function_id=new_id(),
            name="hello",
            nca_id="account",
            created_at=time.time(),
            process=source,
            tags=("blue",),
        )
        await self.versions.put(version.id, version)
        return version

    def order(self, version: FunctionVersion, count: int = 1, **changes: Any) -> CreationMessage:
        now = time.time()
        message = CreationMessage(
            message_id=new_id(),
            cluster_id="local",
            function_id=version.function_id,
            version_id=version.id,
            function_name=version.name,
            nca_id=version.nca_id,
            specification_id="0-CPU-process",
            gpu="CPU",
            instance_type="process",
            gpus_per_instance=0,
            max_request_concurrency=1,
            instance_ids=tuple(new_id() for _ in range(count)),
            issued_at=now,
            expires_at=now + 60,
            process=version.process,
        )
        return message.replace(**changes)

    async def announce(self, message: CreationMessage) -> None:
        """Create the PENDING records, as the autoscaler does before it sends the message."""
        now = time.time()
        for instance_id in message.instance_ids:
            record = Instance(
                id=instance_id,
                function_id=message.function_id,
                version_id=message.version_id,
                cluster_id=message.cluster_id,
                state=InstanceState.PENDING,
                updated_at=now,
                created_at=now,
                specification_id=message.specification_id,
            )
            await self.instances.create(record.key, record)

    async def send(self, message: CreationMessage) -> None:
        await self.client.jetstream().publish(message.subject, message.to_json(), stream=CREATE_STREAM)

    async def create(self, version: FunctionVersion, count: int = 1, **changes: Any) -> CreationMessage:
        message = self.order(version, count, **changes)
        await self.announce(message)
        await self.send(message)
        return message

    async def end(
        self, version: FunctionVersion, *ids: str, grace: float = 20.0, cluster: str = "local"
    ) -> None:
        message = TerminationMessage(
            message_id=new_id(),
            cluster_id=cluster,
            version_id=version.id,
            instance_ids=ids,
            grace_seconds=grace,
            issued_at=time.time(),
            reason="fewer are wanted",
        )
        subject = terminate_subject(cluster)
        await self.client.jetstream().publish(subject, message.to_json(), stream=TERMINATE_STREAM)

    def of(self, version: FunctionVersion) -> list[Instance]:
        return [each for each in self.instances.values() if each.version_id == version.id]

    async def until(
        self, version: FunctionVersion, predicate: Callable[[list[Instance]], bool], timeout: float = WAIT
    ) -> list[Instance]:
        try:
            await self.instances.wait_for(lambda _: predicate(self.of(version)), timeout)
        except TimeoutError:
            raise AssertionError(f"instances are {self.of(version)}\n{self.log()[-3000:]}") from None
        return self.of(version)

    async def running(self, version: FunctionVersion, count: int = 1) -> list[Instance]:
        return await self.until(
            version, lambda them: sum(map(is_running, them)) == count and len(live(them)) == count
        )

    async def states(self, version: FunctionVersion, *states: InstanceState) -> list[Instance]:
        """Wait until the version's instances have these states, in any order."""
        return await self.until(version, lambda them: sorted(each.state for each in them) == sorted(states))

    async def free(self, gpu: str, count: int, cluster: str = "local") -> None:
        """Wait until a cluster reports `count` free instances."""
        await self.clusters.wait_for(lambda _: self.pool(gpu, cluster) == count, WAIT)

    def pool(self, gpu: str, cluster: str = "local") -> int | None:
        found = self.clusters.get(cluster)
        pools = found.pools if found is not None else ()
        return next((each.instances_free for each in pools if each.gpu == gpu), None)


def is_running(instance: Instance) -> bool:
    return instance.state is InstanceState.RUNNING


def live(them: list[Instance]) -> list[Instance]:
    over = (InstanceState.COMPLETED, InstanceState.FAILED)
    return [each for each in them if each.state not in over]


def alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.asynccontextmanager
async def token_route() -> AsyncIterator[Tokens]:
    tokens = Tokens()
    app = web.Application()
    app.router.add_post("/v2/nvcf/agents/worker-tokens", tokens.respond)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    tokens.url = f"http://{host}:{port}"
    try:
        yield tokens
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def running_site(folder: Path) -> AsyncIterator[Site]:
    """Run a broker and a token route, with mirrors of the buckets. The test starts the agents."""
    async with contextlib.AsyncExitStack() as stack:
        broker = await stack.enter_async_context(LocalBroker(folder / "broker"))
        tokens = await stack.enter_async_context(token_route())
        client = await connect_broker(broker.url, broker.credentials_file, name="test")
        stack.push_async_callback(client.close)
        versions = KvMirror(client, VERSIONS_BUCKET, FunctionVersion.from_json, FunctionVersion.to_json)
        instances = KvMirror(client, INSTANCES_BUCKET, Instance.from_json, Instance.to_json)
        clusters = KvMirror(client, CLUSTERS_BUCKET, Cluster.from_json, Cluster.to_json)
        ready: list[Awaitable[None]] = []
        for mirror in (versions, instances, clusters):
            await stack.enter_async_context(mirror)
            ready.append(mirror.ready())
        await asyncio.gather(*ready)
        site = Site(folder, broker, client, tokens, versions, instances, clusters)
        try:
            yield site
        finally:
            for agent in site.agents:
                if agent.returncode is None:
                    agent.kill()
                    await agent.wait()
