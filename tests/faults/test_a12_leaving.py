"""A12: a worker that leaves ends with its exit code, whatever still runs; the log names what held it up."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.contract.worker.conftest import StartProcess
from tests.support.peers.gateway import PeerGateway
from tests.support.platform.workers import WorkerProcess
from tests.support.waiting import eventually

SOURCE = """
import asyncio, atexit, multiprocessing, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from nvcf_worker import Fatal, serve

def hangs_here():
    time.sleep(1000)

HOLD = os.environ["HOLD"]

def hold():
    if HOLD == "thread":
        threading.Thread(target=hangs_here, name="stubborn", daemon=False).start()
    elif HOLD == "executor":
        ThreadPoolExecutor(1, thread_name_prefix="stubborn").submit(hangs_here)
    elif HOLD == "atexit":
        atexit.register(hangs_here)
    elif HOLD == "child":
        multiprocessing.get_context("fork").Process(target=hangs_here).start()

class Handler:
    def setup(self):
        hold()
        if os.environ.get("END") == "setup":
            raise RuntimeError("no model")

    async def __call__(self, request):
        if HOLD == "to_thread":
            for _ in range(64):
                asyncio.ensure_future(asyncio.to_thread(hangs_here))
        if request.path == "/fatal":
            raise Fatal("the GPU is gone")
        return {"pid": os.getpid()}

    def teardown(self):
        print("torn down", file=sys.stderr, flush=True)

handler = Handler
if os.environ.get("ISOLATION") and __name__ == "__main__":
    serve(Handler, isolation="process", processes=1)
"""


def left(worker: WorkerProcess) -> list[int]:
    """Return the processes that still run the worker's file."""
    file = worker.process.args[-1] if isinstance(worker.process.args, list) else ""
    return [each.pid for each in psutil.process_iter(["cmdline"]) if file in (each.info["cmdline"] or [])]


HOLDS = ["thread", "executor", "atexit", "to_thread", "child"]


def start(start_process: StartProcess, hold: str, **environment: str) -> WorkerProcess:
    return start_process(SOURCE, environment={"HOLD": hold, **environment})


def named(worker: WorkerProcess, hold: str) -> bool:
    """Whether the log names what held the worker up."""
    names = {"to_thread": "_0, ", "child": "ForkProcess-1", "atexit": "an exit handler"}
    stack = "_exit_function" if hold == "child" else "hangs_here"
    return all(each in worker.text() for each in ("still running: ", names.get(hold, "stubborn"), stack))


@pytest.mark.parametrize("hold", HOLDS)
async def test_sigterm(hold: str, gateway: PeerGateway, start_process: StartProcess) -> None:
    worker = start(start_process, hold)
    await worker.ready()
    assert (await (await gateway.invoke(b"")).answer()).status == 200
    worker.send_signal(signal.SIGTERM)
    assert await worker.exit_code() == 0, worker.text()
    assert "torn down" in worker.text()
    assert named(worker, hold), worker.text()
    if hold == "child":
        await eventually(lambda: not left(worker), "the child ends with the worker")


@pytest.mark.parametrize("hold", ["executor", "to_thread"])
async def test_fatal(hold: str, gateway: PeerGateway, start_process: StartProcess, tmp_path: Path) -> None:
    worker = start(start_process, hold)
    await worker.ready()
    await gateway.invoke(b"", path="/fatal")
    assert await worker.exit_code() == 3, worker.text()
    assert "torn down" in worker.text()
    assert named(worker, hold), worker.text()
    reason = json.loads((tmp_path / "instance-1" / "nvcf-worker-exit.json").read_text())
    assert (reason["code"], reason["category"], reason["text"]) == (3, "fatal", "the GPU is gone")


@pytest.mark.parametrize("hold", ["thread"])
async def test_failed_setup(hold: str, start_process: StartProcess) -> None:
    worker = start(start_process, hold, END="setup")
    assert await worker.exit_code() == 1, worker.text()
    assert named(worker, hold), worker.text()


async def test_child_processes(gateway: PeerGateway, start_process: StartProcess) -> None:
    worker = start(start_process, "thread", ISOLATION="yes")
    await worker.ready()
    await eventually(lambda: "is ready (pid" in worker.text(), "child ready")
    assert (await (await gateway.invoke(b"")).answer()).status == 200
    worker.send_signal(signal.SIGTERM)
    assert await worker.exit_code() == 0, worker.text()


TASK = """
import threading, time
from nvcf_worker import task

def hangs_here():
    time.sleep(1000)

def main(task):
    threading.Thread(target=hangs_here, name="stubborn").start()

async def main_async(task):
    import asyncio
    asyncio.ensure_future(asyncio.to_thread(hangs_here))
    await asyncio.sleep(0.1)

def fails(task):
    main(task)
    raise KeyboardInterrupt

task({main})
"""


@pytest.mark.parametrize(("main", "code"), [("main", 0), ("main_async", 0), ("fails", 1)])
async def test_tasks(main: str, code: int, start_process: StartProcess) -> None:
    worker = start_process(TASK.replace("{main}", main))
    assert await worker.exit_code() == code, worker.text()


async def test_nothing_is_delayed_or_logged_when_nothing_hangs(
    gateway: PeerGateway, start_process: StartProcess
) -> None:
    worker = start(start_process, "nothing")
    await worker.ready()
    worker.send_signal(signal.SIGTERM)
    assert await worker.exit_code() == 0
    assert "did not end within" not in worker.text()
