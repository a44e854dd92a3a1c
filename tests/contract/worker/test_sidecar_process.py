"""`nvcf-worker sidecar` as a process: start, health, death and end of the user's server; exit reasons."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from nvcf_broker.process import free_port
from nvcf_proto.streams import DEFAULT_MAX_DELIVER
from tests.contract.worker.conftest import StartProcess
from tests.functions import plain_server
from tests.support.peers.gateway import PeerGateway
from tests.support.platform.nats_server import NatsServer
from tests.support.platform.workers import WorkerProcess
from tests.support.waiting import eventually

SERVER = plain_server.__file__
START = [sys.executable, SERVER, "{port}"]

StartSidecar = Callable[..., WorkerProcess]


@pytest.fixture
def start_sidecar(gateway: PeerGateway, broker: NatsServer, tmp_path: Path) -> Iterator[StartSidecar]:
    """Start `nvcf-worker sidecar` with these arguments; killed at the end."""
    started: list[WorkerProcess] = []

    def start(*arguments: str, **options: Any) -> WorkerProcess:
        environment = {"STATE": str(tmp_path), **options.pop("environment", {})}
        process = WorkerProcess(
            ["sidecar", *arguments], gateway, broker, tmp_path, environment=environment, **options
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def reason(tmp_path: Path) -> dict[str, Any]:
    """What the worker said when it ended."""
    return dict(json.loads((tmp_path / "instance-1" / "nvcf-worker-exit.json").read_bytes()))


async def test_a_server_of_its_own_from_start_to_end(
    gateway: PeerGateway, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    process = start_sidecar("--port", "0", "--health", "/ready", "--", *START)
    await process.ready()
    call = await gateway.invoke(b"hello")
    seen = (await call.answer()).json()
    assert (seen["body"], seen["id"], seen["token"]) == ("hello", call.request_id, "")
    server = psutil.Process(seen["pid"])
    slow = await gateway.invoke(path="/slow")
    await eventually((tmp_path / "began").exists, "the request began")

    async def only_the_slow_one() -> bool:
        return await gateway.queued() == 1

    await eventually(only_the_slow_one, "the first is acknowledged")
    process.send_signal(signal.SIGTERM)
    await eventually(lambda: "leaving: 1" in process.text(), "draining")
    (tmp_path / "gate").touch()
    assert (await slow.answer()).status == 200
    assert await process.exit_code() == 0
    assert (tmp_path / "ended").exists()
    await eventually(lambda: not server.is_running(), "the server ended")
    assert reason(tmp_path) == {"code": 0, "category": "drained", "text": "SIGTERM received"}


async def test_beside_a_server_without_arguments_and_told_when_it_has_drained(
    gateway: PeerGateway, broker: NatsServer, tmp_path: Path
) -> None:
    """As in a pod: NVIDIA's agent gives no arguments, and a preStop hook of the server waits."""
    port, own = free_port(), free_port()
    server = await asyncio.create_subprocess_exec(
        sys.executable, SERVER, str(port), env={"STATE": str(tmp_path)}
    )
    variables = {"INFERENCE_PORT": str(port), "HEALTH_PORT": str(own), "INFERENCE_HEALTH_ENDPOINT": "/ready"}
    process = WorkerProcess([], gateway, broker, tmp_path, environment=variables)
    try:
        await process.ready()
        slow = await gateway.invoke(path="/slow")
        await eventually((tmp_path / "began").exists, "the request began")

        async def wait_drained() -> int:
            url = f"http://127.0.0.1:{own}/v1/health/drained"
            async with aiohttp.ClientSession() as http, http.get(url) as answer:
                return answer.status

        hook = asyncio.create_task(wait_drained())
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: "leaving: 1" in process.text(), "draining")
        assert not hook.done()
        (tmp_path / "gate").touch()
        assert (await slow.answer()).status == 200
        assert await hook == 200
        assert await process.exit_code() == 0
    finally:
        process.kill()
        server.kill()
        await server.wait()


async def test_a_server_that_dies_ends_the_worker_and_its_requests_go_back(
    gateway: PeerGateway, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    process = start_sidecar("--port", "0", "--", *START, concurrency=2)
    await process.ready()
    pid = (await (await gateway.invoke()).answer()).json()["pid"]
    waiting = await gateway.invoke(path="/slow")
    await eventually((tmp_path / "began").exists, "the request began")
    psutil.Process(pid).kill()
    assert await process.exit_code() == 5
    assert reason(tmp_path)["category"] == "server-ended"
    assert "killed by SIGKILL" in reason(tmp_path)["text"]
    assert await gateway.queued() == 1
    (tmp_path / "gate").touch()
    second = start_sidecar("--port", "0", "--", *START, concurrency=2, instance="instance-2")
    assert (await waiting.answer()).status == 200
    second.kill()


async def test_nothing_is_pulled_while_the_server_is_unhealthy(
    gateway: PeerGateway, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    unhealthy = tmp_path / "unhealthy"
    unhealthy.touch()
    port = free_port()
    health = ("--health", "/ready", "--health-interval", "0.05")
    own = free_port()
    process = start_sidecar("--port", str(port), *health, environment={"HEALTH_PORT": str(own)})
    await process.ready()
    call = await gateway.invoke(b"early")
    server = await asyncio.create_subprocess_exec(
        sys.executable, SERVER, str(port), env={"STATE": str(tmp_path)}
    )
    try:
        await asyncio.sleep(0.3)  # long enough for a wrong pull, which would get a response at once
        assert not call.head.done()
        assert await ready_status(own) == 503
        unhealthy.unlink()
        assert (await call.answer()).json()["body"] == "early"
        assert await ready_status(own) == 200
        unhealthy.touch()
        await eventually(lambda: "unhealthy" in process.text(), "lost")
        late = await gateway.invoke(b"late")
        await asyncio.sleep(0.3)
        assert not late.head.done()
        unhealthy.unlink()
        assert (await late.answer()).json()["body"] == "late"
        assert "healthy again" in process.text()
    finally:
        server.kill()
        await server.wait()


async def test_a_server_that_is_started_again_gets_the_request_again(
    gateway: PeerGateway, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    """As in a pod, where the kubelet starts the function's container again."""
    port, own = free_port(), free_port()
    start = (sys.executable, SERVER, str(port))
    server = await asyncio.create_subprocess_exec(*start, env={"STATE": str(tmp_path)})
    try:
        # The next check would be late: the broken connection alone has to tell.
        arguments = ("--port", str(port), "--health-interval", "600")
        process = start_sidecar(*arguments, concurrency=2, environment={"HEALTH_PORT": str(own)})
        await process.ready()
        call = await gateway.invoke(path="/slow")
        await eventually((tmp_path / "began").exists, "the request began")
        server.kill()
        await server.wait()
        await eventually(lambda: "no requests are taken" in process.text(), "paused")
        assert await ready_status(own) == 503
        late = await gateway.invoke(b"late")
        (tmp_path / "gate").touch()
        server = await asyncio.create_subprocess_exec(*start, env={"STATE": str(tmp_path)})
        assert (await call.answer()).status == 200
        assert (await late.answer()).json()["body"] == "late"
        assert "healthy again" in process.text()
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


async def test_a_request_that_kills_its_server_each_time_ends_with_an_error(
    gateway: PeerGateway, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    """As in a pod that runs out of memory: the pauses of the kubelet cost the request no attempt."""
    port, deaths = free_port(), tmp_path / "deaths"
    process = start_sidecar("--port", str(port))

    async def keep_running() -> None:
        for started in itertools.count(1):
            server = await asyncio.create_subprocess_exec(
                sys.executable, SERVER, str(port), env={"STATE": str(tmp_path)}
            )
            try:
                await server.wait()
            finally:
                if server.returncode is None:
                    server.kill()
                    await server.wait()
            await eventually(lambda: process.text().count("no requests are taken") == started, "paused")  # noqa: B023

    kubelet = asyncio.create_task(keep_running())
    try:
        await process.ready()
        answer = await (await gateway.invoke(path="/die")).answer()
        assert (answer.status, answer.json()["type"]) == (
            502,
            "urn:inference-connection:problem-details:bad-gateway",
        )
        assert "cannot be reached" in answer.json()["detail"]
        assert deaths.read_bytes() == b"x" * DEFAULT_MAX_DELIVER
        assert (await (await gateway.invoke(b"next")).answer()).json()["body"] == "next"
    finally:
        kubelet.cancel()
        await asyncio.wait({kubelet})


async def ready_status(port: int) -> int:
    """What the worker's own readiness check returns."""
    url = f"http://127.0.0.1:{port}/v1/health/ready"
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return answer.status


async def test_a_worker_that_still_waits_for_its_server_can_be_told_to_leave(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    sleeper = (sys.executable, "-c", "import time; time.sleep(60)")
    process = start_sidecar("--port", "0", "--health", "/ready", "--", *sleeper)
    await eventually(lambda: "started" in process.text(), "the server was started")
    child = psutil.Process(process.process.pid).children()[0]
    process.send_signal(signal.SIGTERM)
    assert await process.exit_code() == 0
    assert reason(tmp_path)["category"] == "drained"
    await eventually(lambda: not child.is_running(), "the server ended")


@pytest.mark.parametrize(
    ("arguments", "code", "category", "words"),
    [
        (["--port", "1", "--ready-timeout", "300ms"], 4, "not-ready", "Connection refused"),
        (["--port", "0", "--", "no-such-program-here"], 2, "configuration", "no such program"),
        (["--port", "0", "--", sys.executable, "-c", "exit(9)"], 5, "server-ended", "exit code 9"),
        (
            ["--port=0", "--health=/no", "--health-expect=201", "--ready-timeout=1s", "--", *START],
            4,
            "not-ready",
            "instead of 201",
        ),
    ],
)  # fmt: skip
async def test_what_cannot_be_served_is_told(
    start_sidecar: StartSidecar, tmp_path: Path, arguments: list[str], code: int, category: str, words: str
) -> None:
    process = start_sidecar(*arguments)
    assert await process.exit_code() == code
    assert reason(tmp_path)["category"] == category
    assert words in reason(tmp_path)["text"]
    assert "Traceback" not in process.text()


async def test_unusable_arguments_are_told_in_one_line(start_sidecar: StartSidecar) -> None:
    process = start_sidecar("--health", "/ready")
    assert await process.exit_code() == 2
    assert process.text().strip() == "nvcf-worker: no port: give --port, or set INFERENCE_PORT"


async def test_grpc_health(gateway: PeerGateway, start_sidecar: StartSidecar) -> None:
    import grpc

    status = 2

    def check(request: bytes, context: Any) -> bytes:
        assert request == b"\x0a\x05model"
        return b"\x08" + bytes([status])

    handler = grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(check)}
    )
    server = grpc.server(__import__("concurrent.futures").futures.ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        process = start_sidecar("--port", str(port), "--health-protocol", "grpc", "--health", "model")
        await eventually(lambda: "connected to the broker" in process.text(), "connected")
        assert "is ready" not in process.text()
        status = 1
        await eventually(lambda: "is ready" in process.text(), "healthy")
    finally:
        server.stop(0)


HANDLER = """
import time
def handler(request):
    time.sleep(float(request.query.get("sleep", "0")))
    return 1
"""


@pytest.mark.parametrize("how", ["file", "signal"])
async def test_a_notice_of_termination_drains(
    gateway: PeerGateway, start_process: StartProcess, tmp_path: Path, how: str
) -> None:
    notice = tmp_path / "notice"
    process = start_process(HANDLER, environment={"NVCF_TERMINATION_NOTICE_FILE": str(notice)})
    await process.ready()
    call = await gateway.invoke(path="/?sleep=0.5")
    await eventually(lambda: _in_flight(gateway), "in flight")
    if how == "file":
        notice.touch()
    else:
        process.send_signal(signal.SIGUSR1)
        await eventually(lambda: "SIGUSR1" in process.text(), "noticed")
        process.send_signal(signal.SIGTERM)  # follows a notice, and is no second signal
    assert (await call.answer()).json() == 1
    assert await process.exit_code() == 0
    assert reason(tmp_path)["text"].startswith("notice of termination")


async def _in_flight(gateway: PeerGateway) -> bool:
    return int((await gateway.consumer())["num_ack_pending"]) == 1


async def test_reasons_of_a_bad_start(start_process: StartProcess, tmp_path: Path) -> None:
    process = start_process(HANDLER, environment={"NVCF_WORKER_TOKEN": ""})
    assert await process.exit_code() == 2
    assert reason(tmp_path)["category"] == "configuration"
    assert "NVCF_WORKER_TOKEN" in reason(tmp_path)["text"]


async def test_a_second_signal_leaves_a_reason_too(
    gateway: PeerGateway, start_process: StartProcess, tmp_path: Path
) -> None:
    process = start_process(HANDLER)
    await process.ready()
    await gateway.invoke(path="/?sleep=60")
    await eventually(lambda: _in_flight(gateway), "in flight")
    process.send_signal(signal.SIGINT)
    await eventually(lambda: "leaving: 1" in process.text(), "draining")
    process.send_signal(signal.SIGTERM)
    assert await process.exit_code() == 143
    assert reason(tmp_path) == {
        "code": 143, "category": "killed", "text": "SIGINT, then SIGTERM: ended at once"
    }  # fmt: skip
