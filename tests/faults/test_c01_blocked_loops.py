"""C1: an event loop that stands still is noticed, and its worker or child process is replaced."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from nvcf_worker.run.stall_detector import LagWatch
from tests.contract.worker.conftest import StartProcess
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually

SOURCE = """
import asyncio, os, threading, time
from nvcf_worker import App, serve

app = App()

@app.setup
async def load():
    time.sleep(float(os.environ.get("LOADING", "0")))

def blocks_here(seconds):
    time.sleep(seconds)

@app.route("/for-ever")
async def for_ever(request):
    if request.attempt == 1:
        blocks_here(1000)
    return {"pid": os.getpid()}

@app.route("/moment")
async def moment(request):
    blocks_here(1.5)
    return {"pid": os.getpid()}

@app.route("/ok")
async def ok(request):
    return {"pid": os.getpid()}

serve(app, **SETTINGS)
"""


async def test_a_worker_whose_loop_stands_still_ends(
    gateway: PeerGateway, start_process: StartProcess, tmp_path: Path
) -> None:
    # Loading that blocks for longer than the limit is no fault: nothing is served yet.
    worker = start_process(
        SOURCE.replace("**SETTINGS", ""), environment={"NVCF_STALL_SECONDS": "3", "LOADING": "4"}
    )
    await worker.ready()
    assert (await (await gateway.invoke(b"", path="/moment")).answer()).status == 200
    call = await gateway.invoke(b"", path="/for-ever")
    assert await worker.exit_code() == 3, worker.text()
    assert "blocks_here" in worker.text(), "the stack of the loop's thread is in the log"
    reason = json.loads((tmp_path / "instance-1" / "nvcf-worker-exit.json").read_text())
    assert reason["category"] == "unhealthy"
    assert "the event loop stood still" in reason["text"]
    assert call.request_id in reason["text"]
    # The instance starts again, and hands back what its predecessor held.
    again = start_process(SOURCE.replace("**SETTINGS", ""))
    await again.ready()
    assert (await call.answer()).status == 200


async def test_a_child_whose_loop_stands_still_is_replaced(
    gateway: PeerGateway, start_process: StartProcess
) -> None:
    source = SOURCE.replace("**SETTINGS", "isolation='process', processes=1")
    worker = start_process(source, environment={"NVCF_STALL_SECONDS": "3"})
    await worker.ready()
    await eventually(lambda: worker.text().count("is ready (pid") == 1, "child ready")
    first = (await (await gateway.invoke(b"", path="/ok")).answer()).json()
    answer = await (await gateway.invoke(b"", path="/for-ever")).answer()
    assert answer.status == 200, "it was run once more, in the next child"
    assert answer.json() != first
    assert "blocks_here" in worker.text()
    assert worker.process.poll() is None


LOCKED = """
import re
async def handler(request):
    if request.attempt == 1:
        re.match("(a+)+$", "a" * 64 + "!")
    return "done"
"""


async def test_an_interpreter_lock_that_never_comes_back(
    gateway: PeerGateway, start_process: StartProcess
) -> None:
    worker = start_process(LOCKED, environment={"NVCF_STALL_SECONDS": "0.4"})
    await worker.ready()
    call = await gateway.invoke(b"")
    assert await worker.exit_code() == 1, worker.text()
    assert "Timeout (0:00:04)!" in worker.text()
    assert "in handler" in worker.text(), "all stacks are in the log"
    again = start_process(LOCKED)
    await again.ready()
    assert (await call.answer()).status == 200


def test_a_process_that_did_not_run_proves_nothing() -> None:
    watch = LagWatch(2.0, 0.0)
    for tick in range(1, 11):
        watch.look(tick * 0.5)
    assert watch.stood == 5.0
    # Stopped, or kept from running by native code that holds the interpreter lock.
    watch.look(100.0)
    assert watch.stood == 5.0
    watch.beat(100.1)
    assert watch.stood == 0.0
    watch.look(100.5)
    assert watch.stood <= 0.5


async def test_other_threads_do_not_count(gateway: PeerGateway, start_process: StartProcess) -> None:
    source = """
import time
def handler(request):
    time.sleep(float(request.query.get("sleep", "0")))
    return "done"
"""
    worker = start_process(source, environment={"NVCF_STALL_SECONDS": "1"})
    await worker.ready()
    answers = await asyncio.gather(
        *[(await gateway.invoke(b"", path="/?sleep=3")).answer() for _ in range(2)]
    )
    assert [each.status for each in answers] == [200, 200]
    assert worker.process.poll() is None
