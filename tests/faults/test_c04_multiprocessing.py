"""C4: processes of a handler's own, with every start method, find the functions of its file."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.contract.worker.conftest import StartProcess
from tests.support.peers.gateway import PeerGateway

FUNCTION = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from nvcf_worker import SyncRequest, serve

class Job:
    def __init__(self, number):
        self.number = number

def square(job):
    return {"result": job.number ** 2, "pid": os.getpid(), "module": square.__module__}

def put(queue, number):
    queue.put(square(Job(number)))

def handler(request: SyncRequest):
    asked = request.json()
    context = multiprocessing.get_context(asked["method"])
    if asked["way"] == "executor":
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            return list(pool.map(square, [Job(1), Job(2)], timeout=30))
    if asked["way"] == "pool":
        with context.Pool(2) as pool:
            return pool.map_async(square, [Job(1), Job(2)]).get(timeout=30)
    queue = context.SimpleQueue()
    process = context.Process(target=put, args=(queue, 2), daemon=True)
    process.start()
    process.join(30)
    return [queue.get() if process.exitcode == 0 else {"exit": process.exitcode}]

END
"""


@pytest.mark.parametrize("end", ["serve(handler)", "", "serve(square)"])
async def test_c4_every_start_method(gateway: PeerGateway, start_process: StartProcess, end: str) -> None:
    # A file that is run, one that ends without serve(), and one of several handlers.
    name = "handler" if end == "serve(square)" else None
    worker = start_process(FUNCTION.replace("END", end), name)
    await worker.ready()
    for method in ("spawn", "forkserver"):
        for way in ("executor", "pool", "process"):
            found = await ask(gateway, {"method": method, "way": way})
            assert [each.get("result") for each in found] in ([1, 4], [4]), (
                method,
                way,
                found,
                worker.text(),
            )
            assert all(each["pid"] != worker.process.pid for each in found)
    assert worker.text().count("pulling requests") == 1, worker.text()
    assert worker.text().count("serving ") == 1, worker.text()


async def test_c4_in_child_processes_of_the_worker(gateway: PeerGateway, start_process: StartProcess) -> None:
    worker = start_process(FUNCTION.replace("END", 'serve(handler, isolation="process")'))
    await worker.ready()
    found = await ask(gateway, {"method": "spawn", "way": "executor"})
    assert [each["result"] for each in found] == [1, 4]


async def test_c4_what_main_guards_runs_once(gateway: PeerGateway, start_process: StartProcess) -> None:
    guarded = 'if __name__ == "__main__":\n    print("guarded", flush=True)\n    serve(handler)\n'
    worker = start_process(FUNCTION.replace("END", "print(__name__, flush=True)\n" + guarded))
    await worker.ready()
    found = await ask(gateway, {"method": "spawn", "way": "process"})
    assert [each["result"] for each in found] == [4]
    assert worker.text().count("guarded") == 1
    assert worker.text().count("__mp_main__") == 1, worker.text()


async def ask(gateway: PeerGateway, question: dict[str, str]) -> list[dict[str, Any]]:
    async with asyncio.timeout(60):
        answer = await (await gateway.invoke(json.dumps(question).encode())).answer()
    assert answer.status == 200, answer.body
    return list(json.loads(answer.body))
