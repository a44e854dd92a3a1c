"""The process agent as a process, with the real broker, real children and SIGKILL."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from aiohttp import web
from nats.js.api import StreamConfig

from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.kv import KvMirror
from nvcf_broker.process import spawn
from nvcf_broker.server import LocalBroker
from nvcf_proto.ids import new_id
from nvcf_proto.models import (
    DEPLOYMENTS_BUCKET,
    INSTANCES_BUCKET,
    VERSIONS_BUCKET,
    Deployment,
    DeploymentSpecification,
    FunctionVersion,
    Instance,
    InstanceState,
    ProcessSource,
)
from nvcf_proto.subjects import request_stream, request_subject, request_subjects

WAIT = 40.0

# What a worker does for the agent: its health port. Scripts are run instead of nvcf_worker, see `stand_in`.
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
    asked: list[dict[str, str]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append({**body, "key": request.headers.get("Authorization", "")})
        if not self.working:
            return web.json_response({"title": "Unavailable"}, status=503)
        return web.json_response(
            {"token": f"token-of-{body['instanceId']}", "expiration": "2030-01-01T00:00:00Z"}
        )


@dataclass
class Cluster:
    """Everything around one agent process."""

    folder: Path
    broker: LocalBroker
    client: BrokerClient
    tokens: Tokens
    deployments: KvMirror[Deployment]
    versions: KvMirror[FunctionVersion]
    instances: KvMirror[Instance]
    agent: asyncio.subprocess.Process | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    async def start_agent(self, *extra: str) -> asyncio.subprocess.Process:
        key = self.folder / "agent.key"
        key.write_text("nvcf-agent-key\n")
        command = [sys.executable, "-m", "nvcf_agent", "--nats", self.broker.url]
        command += [
            "--nats-credentials",
            str(self.broker.credentials_file),
            "--gateway-http",
            self.tokens.url,
        ]
        command += ["--worker-grpc", "127.0.0.1:1", "--worker-nats", self.broker.url, "--key-file", str(key)]
        command += ["--data", str(self.data), *extra]
        environment = {**os.environ, "NVCF_TEST_SECRET": "of the agent alone"}
        self.agent = await spawn(command, env=environment, stdout=asyncio.subprocess.PIPE)
        assert self.agent.stdout is not None
        line = await asyncio.wait_for(self.agent.stdout.readline(), WAIT)
        assert json.loads(line)["event"] == "ready"
        return self.agent

    async def kill_agent(self) -> None:
        assert self.agent is not None
        self.agent.kill()
        await self.agent.wait()

    def stand_in(self) -> str:
        """An interpreter that runs the function's file itself instead of the worker module."""
        path = self.folder / "bin" / "python"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec {sys.executable} "$3"\n')
        path.chmod(0o755)
        return str(path)

    async def deploy(
        self, script: str, count: int = 1, *, python: str | None = None, **environment: str
    ) -> FunctionVersion:
        version_id = new_id()
        file = self.folder / f"{version_id}.py"
        file.write_text(script)
        source = ProcessSource(
            python=python or self.stand_in(),
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
        )
        await self.versions.put(version.id, version)
        await self.scale(version, count)
        return version

    async def scale(self, version: FunctionVersion, count: int, concurrency: int = 1) -> None:
        specification = DeploymentSpecification(
            min_instances=count, max_instances=max(1, count), max_request_concurrency=concurrency
        )
        record = Deployment(version.id, version.function_id, time.time(), (specification,))
        await self.deployments.put(version.id, record)

    def of(self, version: FunctionVersion) -> list[Instance]:
        return [each for each in self.instances.values() if each.version_id == version.id]

    async def until(
        self, version: FunctionVersion, predicate: Callable[[list[Instance]], bool], timeout: float = WAIT
    ) -> list[Instance]:
        try:
            await self.instances.wait_for(lambda _: predicate(self.of(version)), timeout)
        except TimeoutError:
            raise AssertionError(f"instances are {self.of(version)}") from None
        return self.of(version)

    async def running(self, version: FunctionVersion, count: int = 1) -> list[Instance]:
        return await self.until(version, lambda them: len(them) == count and all(map(is_running, them)))


def is_running(instance: Instance) -> bool:
    return instance.state is InstanceState.RUNNING


def alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def eventually(condition: Callable[[], bool], timeout: float = WAIT) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def token_route() -> AsyncIterator[Tokens]:
    tokens = Tokens()
    app = web.Application()
    app.router.add_post("/v2/nvcf/agents/worker-tokens", tokens.answer)
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


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with contextlib.AsyncExitStack() as stack:
        broker = await stack.enter_async_context(LocalBroker(tmp_path / "broker"))
        tokens = await stack.enter_async_context(token_route())
        client = await connect_broker(broker.url, broker.credentials_file, name="test")
        stack.push_async_callback(client.close)
        deployments = KvMirror(client, DEPLOYMENTS_BUCKET, Deployment.from_json, Deployment.to_json)
        versions = KvMirror(client, VERSIONS_BUCKET, FunctionVersion.from_json, FunctionVersion.to_json)
        instances = KvMirror(client, INSTANCES_BUCKET, Instance.from_json, Instance.to_json)
        ready: list[Awaitable[None]] = []
        for mirror in (deployments, versions, instances):
            await stack.enter_async_context(mirror)
            ready.append(mirror.ready())
        await asyncio.gather(*ready)
        made = Cluster(tmp_path, broker, client, tokens, deployments, versions, instances)
        yield made
        if made.agent is not None and made.agent.returncode is None:
            await made.kill_agent()


async def test_a_deployment_becomes_running_instances_and_an_undeployment_none(cluster: Cluster) -> None:
    await cluster.start_agent()
    version = await cluster.deploy(STEADY, 2)
    first, second = await cluster.running(version, 2)
    assert first.pid != second.pid
    assert first.health_port != second.health_port
    assert first.log_path is not None
    log = Path(first.log_path)
    await eventually(lambda: "hello from the function" in log.read_text())
    assert log == cluster.data / "logs" / "hello" / f"{first.id}.log"
    folders = [cluster.data / "instances" / each.id for each in (first, second)]
    assert all((folder / "shared").is_dir() for folder in folders)
    await cluster.deployments.delete(version.id)
    await cluster.until(version, lambda them: not them)
    assert not alive(first.pid)
    assert not alive(second.pid)
    assert not any(folder.exists() for folder in folders)
    assert "hello" in await asyncio.to_thread(log.read_text)


async def test_the_environment_is_the_contracts_and_nothing_of_the_platform(cluster: Cluster) -> None:
    dump = "import json\n(shared / 'seen').write_text(json.dumps(dict(os.environ)))\n"
    await cluster.start_agent()
    version = await cluster.deploy(HEALTH + dump + STEADY, 1, MODEL="small", FUNCTION_ID="mine")
    (instance,) = await cluster.running(version)
    seen = json.loads((cluster.data / "instances" / instance.id / "shared" / "seen").read_text())
    assert seen["NVCF_WORKER_TOKEN"] == f"token-of-{instance.id}"
    assert seen["INSTANCE_ID"] == instance.id
    assert seen["FUNCTION_ID"] == version.function_id
    assert seen["FUNCTION_VERSION_ID"] == version.id
    assert seen["FUNCTION_NAME"] == "hello"
    assert seen["MODEL"] == "small"
    assert seen["MAX_REQUEST_CONCURRENCY"] == "1"
    assert "NVCF_TEST_SECRET" not in seen
    password = cluster.broker.credentials_file.read_text().strip().split(":")[1]
    assert password not in json.dumps(seen)
    assert instance.pid is not None
    assert "token-of" not in " ".join(psutil.Process(instance.pid).cmdline())
    assert cluster.tokens.asked == [
        {
            "instanceId": instance.id,
            "functionId": version.function_id,
            "functionVersionId": version.id,
            "key": "Bearer nvcf-agent-key",
        }
    ]


async def test_a_killed_worker_comes_back_as_the_same_instance_with_its_folder(cluster: Cluster) -> None:
    await cluster.start_agent()
    version = await cluster.deploy(STEADY)
    (before,) = await cluster.running(version)
    kept = cluster.data / "instances" / before.id / "shared" / "inflight"
    kept.write_text("journal")
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    (after,) = await cluster.until(version, lambda them: is_running(them[0]) and them[0].pid != before.pid)
    assert (after.id, after.restarts) == (before.id, 1)
    assert kept.read_text() == "journal"


async def test_why_an_instance_died_is_told_with_its_last_words(cluster: Cluster) -> None:
    await cluster.start_agent()
    version = await cluster.deploy("import sys\nprint('noise')\nsys.exit('no model at /models/x')\n")
    (failed,) = await cluster.until(version, lambda them: bool(them) and "no model" in (them[0].reason or ""))
    assert failed.reason is not None
    assert failed.reason.splitlines()[0] == "exit code 1"
    assert "noise" not in failed.reason
    (later,) = await cluster.until(version, lambda them: them[0].restarts >= 2)
    assert later.restarts < 6


async def test_a_worker_killed_by_a_signal_is_told_by_name(cluster: Cluster) -> None:
    await cluster.start_agent()
    version = await cluster.deploy("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    await cluster.until(version, lambda them: bool(them) and them[0].reason == "killed by SIGSEGV")


async def test_a_python_that_does_not_exist_is_named(cluster: Cluster) -> None:
    await cluster.start_agent()
    version = await cluster.deploy(STEADY, python="/does/not/exist/python")
    await cluster.until(
        version, lambda them: bool(them) and "/does/not/exist/python" in (them[0].reason or "")
    )


async def test_a_killed_agent_leaves_no_process_and_its_successor_takes_over(cluster: Cluster) -> None:
    helper = "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    note = "(shared / 'helper').write_text(str(p.pid))\n"
    await cluster.start_agent()
    version = await cluster.deploy(HEALTH + helper + note + STEADY, 2)
    before = await cluster.running(version, 2)
    helpers = [
        int((cluster.data / "instances" / each.id / "shared" / "helper").read_text()) for each in before
    ]
    await cluster.kill_agent()
    await eventually(lambda: not any(alive(each.pid) for each in before))
    await cluster.start_agent()
    pids = {each.pid for each in before}
    after = await cluster.until(
        version, lambda them: all(is_running(each) and each.pid not in pids for each in them)
    )
    assert {each.id for each in after} == {each.id for each in before}
    assert not any(alive(pid) for pid in helpers)


async def test_what_was_undeployed_while_the_agent_was_dead_is_cleared_away(cluster: Cluster) -> None:
    await cluster.start_agent()
    version = await cluster.deploy(STEADY)
    (instance,) = await cluster.running(version)
    await cluster.kill_agent()
    await cluster.deployments.delete(version.id)
    orphan = cluster.data / "instances" / new_id()
    orphan.mkdir()
    await cluster.start_agent()
    await cluster.until(version, lambda them: not them)
    await eventually(lambda: not (cluster.data / "instances" / instance.id).exists())
    assert not orphan.exists()


async def test_sigterm_lets_workers_leave_in_order_and_keeps_their_ids(cluster: Cluster) -> None:
    agent = await cluster.start_agent()
    version = await cluster.deploy(STEADY, 2)
    before = await cluster.running(version, 2)
    agent.terminate()
    assert await asyncio.wait_for(agent.wait(), WAIT) == 0
    for each in before:
        assert not alive(each.pid)
        assert (cluster.data / "instances" / each.id / "shared" / "left").read_text() == "in order"
    stopped = await cluster.until(
        version, lambda them: all(each.state is InstanceState.PENDING for each in them)
    )
    assert {each.reason for each in stopped} == {"the agent was stopped"}
    await cluster.start_agent()
    after = await cluster.running(version, 2)
    assert {each.id for each in after} == {each.id for each in before}


async def test_a_worker_that_does_not_leave_is_killed_after_the_grace_period(cluster: Cluster) -> None:
    await cluster.start_agent("--grace", "0.5")
    version = await cluster.deploy(
        HEALTH + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + STEADY[len(HEALTH) :]
    )
    (instance,) = await cluster.running(version)
    await cluster.deployments.delete(version.id)
    await cluster.until(version, lambda them: not them)
    assert not alive(instance.pid)


async def test_without_a_gateway_the_reason_says_so_and_it_starts_once_there_is_one(cluster: Cluster) -> None:
    cluster.tokens.working = False
    await cluster.start_agent()
    version = await cluster.deploy(STEADY)
    await cluster.until(version, lambda them: bool(them) and "HTTP 503" in (them[0].reason or ""))
    cluster.tokens.working = True
    (instance,) = await cluster.running(version)
    assert (instance.restarts, instance.reason) == (0, None)


async def test_instances_outlive_a_crash_of_the_broker(cluster: Cluster) -> None:
    await cluster.start_agent()
    version = await cluster.deploy(STEADY)
    (before,) = await cluster.running(version)
    await cluster.broker.kill()
    await cluster.broker.start()
    await eventually(lambda: cluster.client.is_connected)
    await cluster.scale(version, 2)
    after = await cluster.running(version, 2)
    assert before.pid in {each.pid for each in after}


async def test_an_undeployed_version_serves_until_its_queue_is_empty(cluster: Cluster) -> None:
    await cluster.start_agent()
    version = await cluster.deploy(STEADY)
    (instance,) = await cluster.running(version)
    stream = cluster.client.jetstream()
    name = request_stream("local", version.id)
    config = StreamConfig(name=name, subjects=[request_subjects("local", version.id)])
    await stream.add_stream(config)
    await stream.publish(request_subject("local", version.id, new_id()), b"waiting")
    looks = await cluster.client.subscribe("$JS.API.STREAM.LIST")
    await cluster.client.flush()
    await cluster.deployments.delete(version.id)
    await cluster.until(version, lambda them: them[0].state is InstanceState.TERMINATING)
    for _ in range(4):
        await looks.next_msg(timeout=WAIT)
    assert alive(instance.pid)
    await stream.purge_stream(name)
    await cluster.until(version, lambda them: not them)
    assert not alive(instance.pid)


async def test_fewer_and_more_instances(cluster: Cluster) -> None:
    await cluster.start_agent()
    version = await cluster.deploy(STEADY, 3)
    await cluster.running(version, 3)
    await cluster.scale(version, 1)
    (left,) = await cluster.running(version, 1)
    await cluster.scale(version, 0)
    await cluster.until(version, lambda them: not them)
    assert not alive(left.pid)


async def test_new_settings_replace_an_instance_only_when_its_successor_serves(cluster: Cluster) -> None:
    await cluster.start_agent()
    version = await cluster.deploy(STEADY)
    (old,) = await cluster.running(version)
    served = True

    def watch(them: list[Instance]) -> bool:
        nonlocal served
        served = served and any(is_running(each) for each in them)
        return len(them) == 1 and is_running(them[0]) and them[0].id != old.id

    await cluster.scale(version, 1, concurrency=4)
    await cluster.until(version, watch)
    assert served


async def test_a_second_agent_on_the_same_folder_is_refused_in_one_line(cluster: Cluster) -> None:
    await cluster.start_agent()
    assert cluster.agent is not None
    command = psutil.Process(cluster.agent.pid).cmdline()
    second = await spawn(command, stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(second.communicate(), WAIT)
    assert second.returncode == 1
    assert "another agent of cluster local runs on" in errors.decode().splitlines()[-1]
    assert "Traceback" not in errors.decode()
