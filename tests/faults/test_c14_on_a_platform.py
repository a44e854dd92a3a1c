"""C14 and what of C5 and C15 needs a whole platform: what deploy says, and what outlives a function."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from nvcf_broker.process import spawn
from tests.support.platform.agents import alive
from tests.support.platform.nvcf_up import LocalUp, local_up
from tests.support.waiting import eventually

BROKEN = """
from nvcf_worker import SyncRequest, serve

def load(path):
    text = "a line that makes the record long " * 20
    raise FileNotFoundError(f"no weights at {path}")

class Model:
    def setup(self):
        load("/models/small.bin")

    def __call__(self, request: SyncRequest):
        return "never"

serve(Model)
"""

PROCESSES = """
import os, subprocess, sys
from nvcf_worker import Request, SyncRequest, App, serve

def apart(request: SyncRequest):
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    return child.pid

def forked(request: SyncRequest):
    child = os.fork()
    if child == 0:
        sys.exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def stays(request: SyncRequest):
    child = os.fork()
    if child == 0:
        os.setsid()
        import time
        time.sleep(1000)
    return child

async def on_the_loop(request: Request):
    child = os.fork()
    if child == 0:
        sys.exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

class Static:
    @staticmethod
    async def __call__(request: Request):
        return f"static {await request.json()}"

class OfClass:
    @classmethod
    def __call__(cls, request: SyncRequest):
        return f"{cls.__name__} {request.json()}"

app = App()
for handler in (apart, forked, stays, on_the_loop, Static, OfClass):
    app.route(f"/{handler.__name__}", methods=["POST"])(handler)
serve(app)
"""

NAMED = """
from nvcf_worker import serve

def other(request):
    return "other"

def handler(request):
    return "named"

serve(other)
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalUp]:
    async with local_up(tmp_path_factory.mktemp("up")) as running:
        yield running


@pytest.mark.asyncio(loop_scope="module")
async def test_c5_deploy_says_the_names(up: LocalUp) -> None:
    file = up.folder / "named.py"
    file.write_text(NAMED)
    code, _, err = await up.run("deploy", f"{file}:handlr")
    assert code != 0
    assert "did you mean 'handler'?" in err
    await up.ok("deploy", f"{file}:handler")
    assert "named" in await up.ok("invoke", "named", "--data", "{}")


@pytest.mark.asyncio(loop_scope="module")
async def test_c14_deploy_and_logs_say_why_setup_failed(up: LocalUp) -> None:
    file = up.folder / "broken.py"
    file.write_text(BROKEN)
    code, _, err = await up.run("deploy", str(file))
    assert code != 0
    assert "FileNotFoundError: no weights at /models/small.bin" in err
    assert 'load("/models/small.bin")' in err
    assert '{"time"' not in err
    assert "nvcf_worker/" not in err
    assert len(err.splitlines()) < 25, err
    found = next((up.data / "logs" / "broken").glob("*.log")).read_text()
    lines = [json.loads(line) for line in found.splitlines() if line.startswith("{")]
    assert any("no weights" in line.get("exception", "") for line in lines)


async def test_c14_run_says_why_setup_failed(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(BROKEN)
    process = await spawn(
        [sys.executable, "-m", "nvcf_worker", "run", "--port", "0", str(file)],
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(60):
        _, err = await process.communicate()
    assert process.returncode == 1
    assert "could not be set up: FileNotFoundError: no weights" in err.decode()
    assert "nvcf_worker/" not in err.decode()
    assert "line 10, in setup" in err.decode()


@pytest.mark.asyncio(loop_scope="module")
async def test_c15_nothing_outlives_its_function(up: LocalUp) -> None:
    function_id = await up.deploy("processes", PROCESSES, "--concurrency", "4")
    assert await ask(up, function_id, "forked") == "3"
    assert await ask(up, function_id, "on_the_loop") == "4"
    assert await ask(up, function_id, "Static") == "static {}"
    assert await ask(up, function_id, "OfClass") == "OfClass {}"
    pids = [int(await ask(up, function_id, "apart")), int(await ask(up, function_id, "stays"))]
    assert all(alive(pid) for pid in pids)
    await up.ok("undeploy", "processes")
    await eventually(lambda: not any(alive(pid) for pid in pids), "they end with their function", 40)
    assert alive(os.getpid())


async def ask(up: LocalUp, function_id: str, path: str) -> str:
    async with (
        up.session() as session,
        session.post(f"/{path}", json={}, headers={"function-id": function_id}) as response,
    ):
        return await response.text()
