"""`task(main)` as a process: progress, results, time limits, signals, exit reasons."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.waiting import eventually

HEAD = "import asyncio, signal, sys, time\nfrom nvcf_worker import Task, task\n"


class TaskProcess:
    """A task's file run by `python -m nvcf_worker` with the platform's environment."""

    def __init__(self, directory: Path, source: str, environment: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.progress_file = directory / "progress"
        file = directory / "task.py"
        file.write_text(HEAD + source)
        variables = {
            **os.environ,
            "NVCT_TASK_ID": "task-1",
            "NVCT_RESULTS_DIR": str(directory / "results"),
            "NVCT_PROGRESS_FILE_PATH": str(self.progress_file),
            "NVCT_HEARTBEAT_INTERVAL": "50ms",
            "SHARED_CONFIG_DIR": str(directory / "shared"),
            **(environment or {}),
        }
        self.log = directory / "log"
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "nvcf_worker", str(file)]
            self.process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)

    def progress(self) -> dict[str, Any]:
        """What the file says now; empty before it is there."""
        return json.loads(self.progress_file.read_bytes()) if self.progress_file.exists() else {}

    async def end(self) -> tuple[int, dict[str, Any]]:
        """Exit code and reason."""
        await eventually(lambda: self.process.poll() is not None, "the task ended")
        file = self.directory / "shared" / "nvcf-worker-exit.json"
        return self.process.returncode, json.loads(file.read_bytes()) if file.exists() else {}


@dataclass
class Store:
    """An object store that takes PUTs with a Content-Length, as presigned addresses do."""

    url: str = ""
    puts: list[bytes] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)

    async def put(self, request: web.Request) -> web.Response:
        """Take an object, or refuse it with the next status of `refusals`."""
        if self.refusals:
            return web.Response(status=self.refusals.pop(0))
        assert request.content_length is not None
        self.puts.append(await request.read())
        return web.Response()


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    store = Store()
    application = web.Application(client_max_size=2**26)
    application.router.add_put("/results.zip", store.put)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    store.url = f"http://127.0.0.1:{runner.addresses[0][1]}/results.zip"
    yield store
    await runner.cleanup()


async def test_a_task_from_begin_to_end(tmp_path: Path, store: Store) -> None:
    store.refusals.append(503)
    source = """
def main(run: Task):
    run.progress(10, name="epoch-1", metadata={"loss": 0.5})
    (run.results_dir / "epoch-1").mkdir()
    (run.results_dir / "epoch-1" / "weights").write_bytes(b"w" * 3_000_000)
    while not (run.results_dir / "go").exists():
        time.sleep(0.02)
    run.progress(90)
task(main)
"""
    run = TaskProcess(tmp_path, source, {"NVCT_RESULTS_UPLOAD_URL": store.url})
    await eventually(lambda: run.progress().get("percentComplete") == 10, "first report")
    first = run.progress()
    assert (first["taskId"], first["name"], first["metadata"]) == ("task-1", "epoch-1", {"loss": 0.5})
    await eventually(lambda: run.progress()["lastUpdatedAt"] > first["lastUpdatedAt"], "a heartbeat")
    assert run.progress() | {"lastUpdatedAt": ""} == first | {"lastUpdatedAt": ""}
    (tmp_path / "results" / "go").touch()
    code, reason = await run.end()
    assert (code, reason["category"]) == (0, "completed")
    assert run.progress()["percentComplete"] == 100
    with zipfile.ZipFile(io.BytesIO(store.puts[0])) as archive:
        assert archive.read("epoch-1/weights") == b"w" * 3_000_000
        assert sorted(archive.namelist()) == ["epoch-1/weights", "go"]


RAISES = "raise ValueError('no data')"
LIMIT = "max-runtime-exceeded"
FORCED = "task(main, max_seconds=0.2, grace_seconds=0.2)"


@pytest.mark.parametrize(
    ("main", "call", "code", "category", "words"),
    [
        (f"def main(run): {RAISES}", "task(main)", 1, "failed", "ValueError: no data"),
        (f"async def main(run): {RAISES}", "task(main)", 1, "failed", "ValueError: no data"),
        ("def main(run): sys.exit(9)", "task(main)", 9, "failed", "exit code 9"),
        ("async def main(run): await asyncio.sleep(60)", "task(main, max_seconds=0.2)", 124, LIMIT, "0.2 s"),
        ("def main(run): run.cancelled.wait()", "task(main, max_seconds=0.2)", 124, LIMIT, "0.2 s"),
        ("def main(run): time.sleep(60)", FORCED, 124, LIMIT, "grace"),
    ],
)
async def test_ends_of_all_kinds(
    tmp_path: Path, main: str, call: str, code: int, category: str, words: str
) -> None:
    found, reason = await TaskProcess(tmp_path, f"{main}\n{call}").end()
    assert (found, reason["code"], reason["category"]) == (code, code, category)
    assert words in reason["text"]


SOURCES = {
    "coroutine": "async def main(run):\n    run.progress(1)\n    await asyncio.sleep(60)\ntask(main)",
    "function": "def main(run):\n    run.progress(1)\n    run.cancelled.wait()\ntask(main)",
}


@pytest.mark.parametrize("kind", list(SOURCES))
async def test_sigterm_gives_time_to_save_and_send(tmp_path: Path, store: Store, kind: str) -> None:
    saving = """
def save(run):
    (run.results_dir / "checkpoint").write_text("saved")
"""
    body = SOURCES[kind].replace(
        "await asyncio.sleep(60)", "try:\n        await asyncio.sleep(60)\n    finally:\n        save(run)"
    )
    body = body.replace("run.cancelled.wait()", "run.cancelled.wait(); save(run)")
    run = TaskProcess(tmp_path, saving + body, {"NVCT_RESULTS_UPLOAD_URL": store.url})
    await eventually(lambda: run.progress().get("percentComplete") == 1, "began")
    run.process.send_signal(signal.SIGTERM)
    code, reason = await run.end()
    assert (code, reason["category"], reason["text"]) == (143, "terminated", "SIGTERM received")
    assert run.progress()["percentComplete"] == 1
    with zipfile.ZipFile(io.BytesIO(store.puts[0])) as archive:
        assert archive.read("checkpoint") == b"saved"


async def test_a_task_deep_in_a_library_is_ended_all_the_same(tmp_path: Path) -> None:
    """Main does not return to Python between the signal and the end of the grace period."""
    source = """
import hashlib
def main(run):
    run.progress(1)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
task(main, grace_seconds=0.2)
"""
    run = TaskProcess(tmp_path, source)
    await eventually(lambda: run.progress().get("percentComplete") == 1, "began")
    started = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    code, reason = await run.end()
    assert (code, reason["category"]) == (143, "terminated")
    assert "did not end within its grace period" in reason["text"]
    assert time.monotonic() - started < 15


async def test_a_second_signal_ends_it_at_once_and_a_notice_counts(tmp_path: Path) -> None:
    source = "def main(run):\n    run.progress(1)\n    time.sleep(60)\ntask(main)"
    notice = tmp_path / "notice"
    run = TaskProcess(tmp_path, source, {"NVCF_TERMINATION_NOTICE_FILE": str(notice)})
    await eventually(lambda: run.progress().get("percentComplete") == 1, "began")
    notice.touch()
    await eventually(lambda: "notice of termination" in run.log.read_text(), "noticed")
    run.process.send_signal(signal.SIGTERM)
    await eventually(
        lambda: "SIGTERM" in run.log.read_text() or run.process.poll() is not None, "first signal"
    )
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGTERM)
    code, reason = await run.end()
    assert code == 143
    assert "second signal" in reason["text"]


@pytest.mark.parametrize(("refusals", "words"), [([403], "responded 403"), ([500] * 6, "after 6 attempts")])
async def test_results_that_cannot_be_sent_are_a_failure(
    tmp_path: Path, store: Store, refusals: list[int], words: str
) -> None:
    store.refusals += refusals
    source = "import nvcf_worker.tasks.upload as u\nu.BACKOFF = type(u.BACKOFF)(first=0.01, limit=0.05)\n"
    source += "def main(run): (run.results_dir / 'a').touch()\ntask(main)"
    code, reason = await TaskProcess(tmp_path, source, {"NVCT_RESULTS_UPLOAD_URL": store.url}).end()
    assert (code, reason["category"]) == (1, "upload-failed")
    assert words in reason["text"]


async def test_unusable_settings_are_told(tmp_path: Path) -> None:
    run = TaskProcess(tmp_path, "task(lambda run: None)", {"NVCT_MAX_RUNTIME_DURATION": "soon"})
    code, _ = await run.end()
    assert code == 2
    assert "NVCT_MAX_RUNTIME_DURATION" in run.log.read_text()


def test_without_a_platform_a_task_just_runs(tmp_path: Path) -> None:
    file = tmp_path / "task.py"
    file.write_text(HEAD + "def main(run):\n    run.progress(50)\n    print('ran', run.id == '')\ntask(main)")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NVC")}
    environment["SHARED_CONFIG_DIR"] = str(tmp_path / "shared")
    done = subprocess.run(
        [sys.executable, str(file)], env=environment, capture_output=True, text=True, check=True
    )
    assert "ran True" in done.stdout
