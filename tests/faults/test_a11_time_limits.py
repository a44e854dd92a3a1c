"""A11: a request that does not end is answered at its limit; an instance without slots is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.contract.worker.conftest import StartProcess
from tests.support.peers.gateway import PeerGateway
from tests.support.platform.workers import WorkerProcess
from tests.support.waiting import eventually

SOURCE = """
import asyncio, os, time
from nvcf_worker import App, batch, serve

app = App()

def spins_here():
    while True:
        time.sleep(0.05)

@app.route("/thread")
def thread(request):
    spins_here()

@app.route("/async")
async def coroutine(request):
    try:
        await asyncio.sleep(1000)
    finally:
        print("cancelled here", flush=True)

@app.route("/stubborn")
async def stubborn(request):
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            continue

@app.route("/blocks")
async def blocks(request):
    time.sleep(1000)

@app.route("/blocks-below")
async def blocks_below(request):
    async def below():
        spins_here()
    await asyncio.gather(below(), asyncio.sleep(1000))

@app.route("/stream")
async def stream(request):
    yield "first"
    await asyncio.sleep(1000)

@app.route("/thread-stream")
def thread_stream(request):
    for _ in range(1000):
        yield "first"
        time.sleep(0.2)

@app.route("/batch")
@batch(max_wait=0)
def batched(items):
    spins_here()

@app.route("/async-batch")
@batch(max_wait=0)
async def async_batched(items):
    await asyncio.sleep(1000)

@app.route("/ok")
async def ok(request):
    return {"pid": os.getpid()}

serve(app, **SETTINGS)
"""


def start(
    start_process: StartProcess, settings: str, concurrency: int = 3, **environment: str
) -> WorkerProcess:
    source = SOURCE.replace("**SETTINGS", settings)
    return start_process(source, concurrency=concurrency, environment=environment)


async def call(gateway: PeerGateway, path: str, **headers: str) -> tuple[int, dict[str, str]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await (await gateway.invoke(b"", path=path, headers=named)).answer()
    return answer.status, answer.json()


KINDS = ["/thread", "/async", "/stubborn", "/blocks", "/blocks-below", "/batch", "/async-batch"]


@pytest.mark.parametrize("path", KINDS)
async def test_the_caller_gets_504_that_names_the_limit(
    path: str, gateway: PeerGateway, start_process: StartProcess
) -> None:
    worker = start(start_process, "time_limit=1", 3, NVCF_MAX_EXECUTION_SECONDS="600")
    await worker.ready()
    status, problem = await call(gateway, path)
    assert status == 504
    assert "1 s, the limit of serve(time_limit=...)" in problem["detail"]
    assert (await call(gateway, "/ok"))[0] == 200
    if path == "/async":
        await eventually(lambda: "cancelled here" in worker.text(), "the coroutine is cancelled")


@pytest.mark.parametrize(
    ("settings", "deployment", "caller", "words"),
    [
        ("time_limit=60", "1", "30", "the deployment (maxExecutionSeconds)"),
        ("time_limit=60", "30", "1", "the caller (NVCF-MAX-EXECUTION-SECONDS)"),
        ("", "", "1", "the caller (NVCF-MAX-EXECUTION-SECONDS)"),
    ],
)
async def test_the_least_limit_counts(
    settings: str, deployment: str, caller: str, words: str, gateway: PeerGateway, start_process: StartProcess
) -> None:
    worker = start(start_process, settings, 3, NVCF_MAX_EXECUTION_SECONDS=deployment)
    await worker.ready()
    status, problem = await call(gateway, "/async", NVCF_MAX_EXECUTION_SECONDS=caller)
    assert (status, words in problem["detail"]) == (504, True), problem
    status, problem = await call(gateway, "/async", NVCF_MAX_EXECUTION_SECONDS="soon")
    assert status == 400
    assert "NVCF-MAX-EXECUTION-SECONDS" in problem["detail"]


@pytest.mark.parametrize("path", ["/stream", "/thread-stream"])
async def test_a_stream_breaks_off_and_does_not_look_complete(
    path: str, gateway: PeerGateway, start_process: StartProcess
) -> None:
    worker = start(start_process, "time_limit=1")
    await worker.ready()
    with pytest.raises(Exception, match=r"(?i)incomplete|broke|cut|closed|abort|payload|reset"):
        await (await gateway.invoke(b"", path=path)).answer()
    await eventually(lambda: "the request did not end within 1 s" in worker.text(), "it is logged")
    assert (await call(gateway, "/ok"))[0] == 200


async def test_a_worker_without_slots_is_unhealthy_and_leaves(
    gateway: PeerGateway, start_process: StartProcess, tmp_path: Path
) -> None:
    worker = start(start_process, "time_limit=1, grace_seconds=60", 3)
    await worker.ready()
    assert (await call(gateway, "/thread"))[0] == 504
    assert (await call(gateway, "/ok"))[0] == 200, "one of three slots is lost"
    assert (await call(gateway, "/stubborn"))[0] == 504
    assert await worker.exit_code() == 3, worker.text()
    assert "2 of 3 slots are lost" in worker.text()
    assert "spins_here" in worker.text(), "the stack of the stuck thread is in the log"
    assert "in stubborn" in worker.text(), "the stack of the stuck coroutine is in the log"
    reason = json.loads((tmp_path / "instance-1" / "nvcf-worker-exit.json").read_text())
    assert (reason["code"], reason["category"]) == (3, "unhealthy")


async def test_a_child_process_is_killed_and_replaced(
    gateway: PeerGateway, start_process: StartProcess
) -> None:
    worker = start(start_process, "time_limit=1, isolation='process', processes=1, concurrency=3")
    await worker.ready()
    await eventually(lambda: worker.text().count("is ready (pid") == 1, "child ready")
    first = await call(gateway, "/ok")
    assert (await call(gateway, "/async"))[0] == 504
    assert await call(gateway, "/ok") == first, "a coroutine is cancelled, its process stays"
    assert (await call(gateway, "/thread"))[0] == 504
    await eventually(lambda: worker.text().count("is ready (pid") == 2, "child replaced")
    status, body = await call(gateway, "/ok")
    assert status == 200
    assert body != first[1]
