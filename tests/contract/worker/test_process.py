"""The worker as a process: start, refusal, signals, sudden death, memory, health."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from pathlib import Path

import aiohttp
import grpc
import psutil
import pytest

from nvcf_broker.process import free_port
from tests.contract.worker.conftest import StartProcess
from tests.support.peers.calls import Call
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually

HANDLER = """
import sys, time
def handler(request):
    print("began", file=sys.stderr, flush=True)
    time.sleep(float(request.query.get("sleep", "0")))
    return {"attempt": request.attempt, "body": request.read().decode()}
async def other(request):
    return "other"
not_callable = 3
"""

SERVING = """
import sys
from nvcf_worker import serve
async def handler(request):
    if request.path == "/stream":
        return endless()
    import asyncio
    await asyncio.sleep(float(request.query.get("sleep", "0")))
    return [request.attempt]
async def endless():
    while True:
        yield b"x" * 65536
if __name__ == "__main__":
    serve(handler, concurrency=3)
"""


async def _in_flight(gateway: PeerGateway, count: int) -> bool:
    info = await gateway.consumer()
    return int(info["num_ack_pending"]) == count


async def _empty(gateway: PeerGateway) -> bool:
    return await gateway.queued() == 0


async def test_a_file_with_a_handler_or_a_name_or_its_own_serve(
    gateway: PeerGateway, start_process: StartProcess
) -> None:
    await start_process(HANDLER, instance="one").ready()
    assert (await (await gateway.invoke(b"a")).answer()).json() == {"attempt": 1, "body": "a"}
    first = start_process(HANDLER, "other", instance="two")
    await first.ready()
    first.send_signal(signal.SIGTERM)
    assert await first.exit_code() == 0
    own = start_process(SERVING, instance="three")
    await own.ready()
    assert "with 3 slots" in own.text()
    own.send_signal(signal.SIGINT)
    assert await own.exit_code() == 0


@pytest.mark.parametrize(
    ("source", "name", "reason"),
    [
        ("x = 1", None, "neither a call of serve() nor a 'handler'"),
        (HANDLER, "nothing", "no attribute 'nothing'"),
        (HANDLER, "not_callable", "a handler must be callable"),
        ("class handler: pass", None, "has no method __call__"),
        ("def handler(): pass", None, "one argument"),
    ],
)
async def test_nothing_to_serve_is_told_in_one_line(
    gateway: PeerGateway, start_process: StartProcess, source: str, name: str | None, reason: str
) -> None:
    process = start_process(source, name)
    assert await process.exit_code() == 2
    assert reason in process.text()
    assert len(process.text().strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("variables", "code", "reason"),
    [
        ({"NVCF_WORKER_TOKEN": "wrong"}, 1, "unknown worker token"),
        ({"NVCF_WORKER_TOKEN": ""}, 2, "not set: NVCF_WORKER_TOKEN"),
        ({"NVCF_FQDN_NATS": "http://x"}, 2, "expected nats://"),
        ({"FUNCTION_VERSION_ID": "../x"}, 2, "FUNCTION_VERSION_ID is not a UUID"),
        ({"MAX_REQUEST_CONCURRENCY": "many"}, 2, "MAX_REQUEST_CONCURRENCY"),
        ({"NVCF_ROOT_CA_FILE": "/no/such/file.pem"}, 2, "NVCF_ROOT_CA_FILE"),
    ],
)
async def test_a_worker_that_cannot_start_says_why(
    gateway: PeerGateway, start_process: StartProcess, variables: dict[str, str], code: int, reason: str
) -> None:
    process = start_process(HANDLER, environment=variables)
    assert await process.exit_code() == code
    assert reason in process.text()
    assert "Traceback" not in process.text()


async def test_permanent_refusals_end_the_start(gateway: PeerGateway, start_process: StartProcess) -> None:
    gateway.refusal = grpc.StatusCode.UNAUTHENTICATED
    process = start_process(HANDLER)
    assert await process.exit_code() == 1
    assert "UNAUTHENTICATED" in process.text()


async def test_passing_troubles_at_the_start_are_waited_for(
    gateway: PeerGateway, start_process: StartProcess
) -> None:
    gateway.refusal = grpc.StatusCode.UNAVAILABLE
    process = start_process(HANDLER)
    await eventually(lambda: "UNAVAILABLE" in process.text(), "tried")
    gateway.refusal = None
    await process.ready()
    assert (await (await gateway.invoke(b"a")).answer()).json()["body"] == "a"


async def test_the_token_is_cached_for_the_next_start(
    gateway: PeerGateway, start_process: StartProcess, tmp_path: Path
) -> None:
    process = start_process(HANDLER)
    await process.ready()
    process.kill()
    cache = tmp_path / "instance-1" / "nvcf-worker-token.json"
    assert cache.stat().st_mode & 0o777 == 0o600
    newest = json.loads(cache.read_text())["access_token"]
    assert newest != gateway.token
    gateway.accepted_tokens = {newest}
    again = start_process(HANDLER)
    await eventually(lambda: gateway.connects[-1] == newest, "connected with the cached token")
    assert again.process.poll() is None
    again.kill()
    # A cached token that is refused is no reason to give up while the environment has a good one.
    gateway.accepted_tokens = {gateway.token}
    third = start_process(HANDLER)
    await eventually(lambda: gateway.connects[-1] == gateway.token, "connected with the given token")
    assert third.process.poll() is None


async def test_a_killed_worker_hands_its_requests_to_its_successor(
    gateway: PeerGateway, start_process: StartProcess
) -> None:
    first = start_process(HANDLER)
    await first.ready()
    calls = [await gateway.invoke(b"%d" % number, path="/?sleep=3600") for number in range(2)]
    # What was on its way when the worker died is in no journal: the handlers must have begun.
    await eventually(lambda: first.text().count("began") == 2, "both in flight")
    first.kill()
    started = time.monotonic()
    second = start_process(HANDLER.replace('float(request.query.get("sleep", "0"))', "0"))
    answers = [(await call.answer()).json() for call in calls]
    # The consumer's ack wait is 30 s: without the journal they would come no sooner.
    assert time.monotonic() - started < 15
    assert sorted(answer["body"] for answer in answers) == ["0", "1"]
    assert [answer["attempt"] for answer in answers] == [2, 2]
    assert "returned 2 requests" in second.text()
    await eventually(lambda: _empty(gateway), "one response each")


async def test_another_instance_does_not_touch_the_journal(
    gateway: PeerGateway, start_process: StartProcess, tmp_path: Path
) -> None:
    first = start_process(HANDLER)
    await first.ready()
    await gateway.invoke(path="/?sleep=3600")
    await eventually(lambda: _in_flight(gateway, 1), "in flight")
    first.kill()
    second = start_process(
        HANDLER, instance="instance-2", environment={"SHARED_CONFIG_DIR": str(tmp_path / "instance-1")}
    )
    await second.ready()
    assert "killed predecessor" not in second.text()


async def test_sigterm_finishes_what_is_in_work_and_takes_nothing_new(
    gateway: PeerGateway, start_process: StartProcess
) -> None:
    process = start_process(HANDLER, concurrency=1)
    await process.ready()
    running = await gateway.invoke(b"running", path="/?sleep=1")
    await eventually(lambda: _in_flight(gateway, 1), "in flight")
    waiting = await gateway.invoke(b"waiting")
    process.send_signal(signal.SIGTERM)
    assert (await running.answer()).json()["body"] == "running"
    assert await process.exit_code() == 0
    assert await gateway.queued() == 1
    successor = start_process(HANDLER, instance="instance-2")
    await successor.ready()
    assert (await waiting.answer()).json() == {"attempt": 1, "body": "waiting"}


async def test_requests_that_cannot_finish_in_time_go_back(
    gateway: PeerGateway, start_process: StartProcess
) -> None:
    source = HANDLER + "\nfrom nvcf_worker import serve\nserve(handler, grace_seconds=0.2)\n"
    process = start_process(source)
    await process.ready()
    call = await gateway.invoke(b"long", path="/?sleep=3600")
    await eventually(lambda: _in_flight(gateway, 1), "in flight")
    process.send_signal(signal.SIGTERM)
    assert await process.exit_code() == 0
    assert "returning 1 unfinished requests to the queue" in process.text()
    start_process(HANDLER.replace('float(request.query.get("sleep", "0"))', "0"), instance="instance-2")
    assert (await call.answer()).json() == {"attempt": 2, "body": "long"}


async def test_a_second_signal_ends_at_once(gateway: PeerGateway, start_process: StartProcess) -> None:
    process = start_process(HANDLER)
    await process.ready()
    await gateway.invoke(path="/?sleep=3600")
    await eventually(lambda: _in_flight(gateway, 1), "in flight")
    process.send_signal(signal.SIGTERM)
    await eventually(lambda: "leaving" in process.text(), "drain begun")
    process.send_signal(signal.SIGTERM)
    assert await process.exit_code(timeout=5) == 128 + signal.SIGTERM


async def test_a_slow_reader_of_an_endless_stream_does_not_grow_the_worker(
    gateway: PeerGateway, start_process: StartProcess
) -> None:
    process = start_process(SERVING)
    await process.ready()
    measured = psutil.Process(process.process.pid)
    calls: list[Call] = [await gateway.invoke(path="/stream") for _ in range(3)]
    for call in calls:
        await call.head
        await anext(call.iterate())
    before = measured.memory_info().rss
    read = 0
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for call in calls:
            read += len(await anext(call.iterate()))
        await asyncio.sleep(0.02)
    assert read > 0
    assert measured.memory_info().rss - before < 20 * 1024 * 1024
    for call in calls:
        await gateway.cancel(call)
    process.kill()


async def test_health(gateway: PeerGateway, start_process: StartProcess) -> None:
    port = free_port()
    gateway.refusal = grpc.StatusCode.UNAVAILABLE
    process = start_process(HANDLER, environment={"HEALTH_PORT": str(port)})
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

        async def status(path: str) -> int:
            try:
                async with session.get(f"/v1/health/{path}") as response:
                    return response.status
            except aiohttp.ClientError:
                return 0

        async def answers(path: str, expected: int) -> bool:
            return await status(path) == expected

        await eventually(lambda: answers("live", 200), "live")
        assert await status("ready") == 503
        gateway.refusal = None
        await eventually(lambda: answers("ready", 200), "ready")
        await gateway.invoke(path="/?sleep=2")
        await eventually(lambda: _in_flight(gateway, 1), "in flight")
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: answers("ready", 503), "not ready while leaving")
        assert await status("live") == 200
    assert await process.exit_code() == 0


async def test_a_health_port_that_is_taken(gateway: PeerGateway, start_process: StartProcess) -> None:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))  # noqa: S104 - to occupy the port on all interfaces
        holder.listen()
        port = holder.getsockname()[1]
        process = start_process(HANDLER, environment={"HEALTH_PORT": str(port)})
        assert await process.exit_code() == 2
        assert f"health port {port} cannot be used" in process.text()


async def test_logs_are_json_lines_with_the_request(
    gateway: PeerGateway, start_process: StartProcess
) -> None:
    source = (
        "import logging\ndef handler(request):\n    logging.getLogger('mine').info('at work')\n    1 / 0\n"
    )
    process = start_process(source)
    await process.ready()
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    call = await gateway.invoke(trace=f"00-{trace_id}-b7ad6b7169203331-01")
    assert (await call.answer()).status == 500
    lines = [json.loads(line) for line in process.text().splitlines()]
    own = next(line for line in lines if line["logger"] == "mine")
    assert (own["request_id"], own["trace_id"], own["level"]) == (call.request_id, trace_id, "info")
    failure = next(line for line in lines if "exception" in line)
    assert failure["request_id"] == call.request_id
    assert "ZeroDivisionError" in failure["exception"]
