"""C5: FILE:HANDLER serves the handler that is named, whatever the file serves by itself."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
import pytest

from nvcf_broker.process import spawn
from tests.contract.worker.conftest import StartProcess
from tests.support.peers.gateway import PeerGateway
from tests.support.platform.nats_server import NatsServer
from tests.support.platform.workers import WorkerProcess

FUNCTION = """
from nvcf_worker import serve, sidecar, task

def other(request):
    return "other"

class Handler:
    def __call__(self, request):
        return "named"

def handler(request):
    import os
    return f"named in {os.environ.get('NVCF_PROCESS_INDEX', 'worker')}"

END
"""


@pytest.mark.parametrize("end", ["serve(other)", "serve(Handler)", "task(other)", "sidecar(port=1)"])
async def test_c5_the_named_handler_is_served(
    gateway: PeerGateway, start_process: StartProcess, end: str
) -> None:
    worker = start_process(FUNCTION.replace("END", end), "handler")
    await worker.ready()
    assert await answered(gateway) == "named in worker"


async def test_c5_its_own_settings_hold(gateway: PeerGateway, start_process: StartProcess) -> None:
    ends = 'serve(other, concurrency=7)\nserve(handler, isolation="process", media_type="text/x-own")'
    worker = start_process(FUNCTION.replace("END", ends), "handler")
    await worker.ready()
    assert await answered(gateway) == "named in 0"


@pytest.mark.parametrize(
    ("name", "end", "words"),
    [
        (
            "handlr",
            "serve(other)",
            ["no attribute 'handlr'", "did you mean 'handler'?", "Handler, handler, other"],
        ),
        ("missing", "", ["no attribute 'missing'", "Handler, handler, other"]),
        ("__name__", "serve(other)", ["a handler must be callable; got str"]),
    ],
)
async def test_c5_a_name_that_does_not_exist(
    gateway: PeerGateway, start_process: StartProcess, name: str, end: str, words: list[str]
) -> None:
    worker = start_process(FUNCTION.replace("END", end), name)
    assert await worker.exit_code() == 2
    for word in words:
        assert word in worker.text()
    assert "Traceback" not in worker.text()


async def test_c5_without_a_handler_the_names_are_said(
    gateway: PeerGateway, broker: NatsServer, tmp_path: Path
) -> None:
    file = tmp_path / "function.py"
    file.write_text("from json import loads\ndef Handle(request): ...\n")
    worker = WorkerProcess(str(file), gateway, broker, tmp_path)
    assert await worker.exit_code() == 2
    assert (
        "has neither a call of serve() nor a 'handler'; did you mean 'Handle'?; it has Handle"
        in worker.text()
    )


async def test_c5_run_locally(tmp_path: Path) -> None:
    file = tmp_path / "function.py"
    file.write_text(FUNCTION.replace("END", "serve(other)"))
    command = [sys.executable, "-m", "nvcf_worker", "run", "--port", "0", f"{file}:handler"]
    process = await spawn(command, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL)
    assert process.stderr is not None
    try:
        url = ""
        async with asyncio.timeout(30):
            while b"ready" not in (line := await process.stderr.readline()):
                assert line
                url = next((word for word in line.decode().split() if word.startswith("http://")), url)
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert await response.text() == "named in worker"
    finally:
        process.kill()
        await process.wait()


async def answered(gateway: PeerGateway) -> str:
    async with asyncio.timeout(30):
        answer = await (await gateway.invoke(b"{}")).answer()
    assert answer.status == 200
    return answer.body.decode()
