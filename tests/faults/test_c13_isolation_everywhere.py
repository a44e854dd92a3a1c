"""C13: every way to start a function honours isolation="process"."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nvcf_broker.process import free_port
from tests.contract.worker.conftest import StartProcess
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually

SOURCE = """
import os, time
from nvcf_worker import App, serve

app = App()

@app.route("/pids")
def pids(request):
    return {"pid": os.getpid(), "parent": os.getppid(), "index": os.environ.get("NVCF_PROCESS_INDEX")}

@app.route("/crash")
def crash(request):
    os.kill(os.getpid(), 9)

@app.route("/hang")
def hang(request):
    time.sleep(1000)

serve(app, isolation="process", processes=2, retry_crashed=False, time_limit=2)
"""


class Local:
    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.process = process

    def call(self, path: str) -> tuple[int, dict[str, object]]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=b"", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - our own
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@contextmanager
def local(tmp_path: Path, target: str, *flags: str) -> Iterator[Local]:
    (tmp_path / "function.py").write_text(SOURCE)
    port, log = free_port(), tmp_path / "run.log"
    command = [
        sys.executable,
        "-m",
        "nvcf_worker",
        "run",
        str(tmp_path / target),
        "--port",
        str(port),
        *flags,
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=dict(os.environ))
    try:
        yield Local(port, process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("target", "flags"), [("function.py", ()), ("function.py:app", ()), ("function.py", ("--reload",))]
)
async def test_run(target: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    with local(tmp_path, target, *flags) as served:
        log = tmp_path / "run.log"
        await eventually(lambda: "nvcf-worker: ready" in log.read_text(), "ready")
        status, first = served.call("/pids")
        assert status == 200
        assert first["index"] in ("0", "1")
        assert first["pid"] != served.process.pid
        assert served.call("/crash")[0] == 500
        status, problem = served.call("/hang")
        assert (status, "serve(time_limit=...)" in str(problem["detail"])) == (504, True)
        await eventually(lambda: log.read_text().count("is ready (pid") == 4, "both children are replaced")
        assert served.call("/pids")[0] == 200
    assert served.process.returncode == 0


@pytest.mark.parametrize("name", [None, "app"])
async def test_workers(name: str | None, gateway: PeerGateway, start_process: StartProcess) -> None:
    worker = start_process(SOURCE, name)
    await worker.ready()
    await eventually(lambda: worker.text().count("is ready (pid") == 2, "children ready")
    body = (await (await gateway.invoke(b"", path="/pids")).answer()).json()
    assert body["parent"] == worker.process.pid
