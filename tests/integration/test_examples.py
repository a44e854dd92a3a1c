"""Examples with a real gateway and broker, started as an agent starts them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.waiting import eventually

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path) as platform:
        yield platform


async def served(platform: Platform, name: str, **options: Any) -> Version:
    """A version of an example, with a worker."""
    version = await platform.deployed_version(name.replace("_", "-"))
    await platform.start_worker(version, EXAMPLES / name / "function.py", **options)
    return version


async def call(
    platform: Platform, version: Version, method: str = "POST", path: str | None = None, **options: Any
) -> Any:
    """Make a pexec call, or a pass-through call of `path`, and read the response."""
    headers = {**platform.authorization(), **options.pop("headers", {})}
    url = platform.gateway.url + (version.pexec if path is None else path)
    if path is not None:
        headers |= {"function-id": version.function_id, "function-version-id": version.id}
    async with platform.session.request(method, url, headers=headers, **options) as answer:
        await answer.read()
        return answer


async def test_hello(platform: Platform) -> None:
    version = await served(platform, "hello")
    answer = await call(platform, version, json={"name": "Ada"})
    assert await answer.json() == {"greeting": "Hello, Ada!"}
    assert (await call(platform, version, json={})).status == 400


async def test_stream(platform: Platform) -> None:
    version = await served(platform, "stream")
    answer = await call(platform, version, json={"text": "one two three", "pace": 0})
    assert answer.content_type == "text/event-stream"
    text = await answer.text()
    assert all(word in text for word in ("one", "two", "three"))
    assert (await call(platform, version, json={"pace": -1})).status == 400


async def test_fastapi_sidecar(platform: Platform) -> None:
    pytest.importorskip("fastapi", reason="the extra `examples` is not installed")
    version = await served(platform, "fastapi_sidecar", concurrency=8)
    answer = await call(platform, version, json={"text": "one two"})
    assert await answer.json() == {"words": 2, "characters": 7}
    assert (await call(platform, version, json={"text": ""})).status == 422
    large = os.urandom(3_000_000)
    answer = await call(platform, version, path="/digest", data=large)
    assert await answer.json() == {"sha256": hashlib.sha256(large).hexdigest(), "bytes": len(large)}
    answer = await call(platform, version, "GET", "/numbers/3")
    assert answer.content_type == "text/event-stream"
    assert await answer.text() == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    # In a pass-through call a response of 400 or more is not changed.
    answer = await call(platform, version, "GET", "/numbers/1001")
    assert (answer.status, await answer.json()) == (422, {"detail": "at most 1000"})
    answer = await call(platform, version, "GET", "/openapi.json")
    assert (await answer.json())["info"]["title"] == "Words"
    answers = await asyncio.gather(
        *(call(platform, version, json={"text": "x" * size}) for size in range(1, 60))
    )
    assert [(await one.json())["characters"] for one in answers] == list(range(1, 60))


async def test_asgi(platform: Platform) -> None:
    version = await served(platform, "asgi")
    answer = await call(platform, version, data=b"Hello, hello")
    assert await answer.json() == {
        "letters": {"e": 2, "h": 2, "l": 4, "o": 2}, "request": answer.headers["nvcf-reqid"]
    }  # fmt: skip
    answer = await call(platform, version, path="/anywhere?x=1", data=b"ab" * 1_000_000)
    assert (await answer.json())["letters"] == {"a": 1_000_000, "b": 1_000_000}
    assert (await call(platform, version, "GET", "/")).status == 405


async def test_class_setup(platform: Platform) -> None:
    version = await served(platform, "class_setup")
    for text, language in (
        ("wo ist der Bahnhof", "German"),
        ("where do you think they were", "English"),
        ("une tasse de lait", "French"),
    ):
        answer = await call(platform, version, json={"text": text})
        found = await answer.json()
        assert found["language"] == language
        assert sum(found["chances"].values()) == pytest.approx(1, abs=0.01)
    assert (await call(platform, version, json={"text": " "})).status == 400


async def test_progress(platform: Platform) -> None:
    version = await served(platform, "progress")
    answer = await call(platform, version, json={"width": 400, "rows": 300}, allow_redirects=False)
    request_id, seen = answer.headers["nvcf-reqid"], []
    while answer.status == 202:
        seen.append(int(answer.headers["nvcf-percent-complete"]))
        answer = await call_status(platform, request_id)
    assert seen
    assert seen == sorted(seen)
    assert answer.status == 302
    async with platform.session.get(answer.headers["location"]) as download:
        data = await download.read()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        picture = archive.read("mandelbrot.pgm")
        assert picture.startswith(b"P5 400 300 255\n")
        assert len(picture) == len(b"P5 400 300 255\n") + 400 * 300
        said = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".response")]
    assert said == [{"width": 400, "rows": 300}]
    assert (await call(platform, version, json={"width": 0})).status == 400


async def call_status(platform: Platform, request_id: str) -> Any:
    url = f"{platform.gateway.url}/v2/nvcf/pexec/status/{request_id}"
    async with platform.session.get(url, headers=platform.authorization(), allow_redirects=False) as answer:
        await answer.read()
        return answer


async def test_task(tmp_path: Path) -> None:
    """A run that is stopped and started again has the same result as an undisturbed run."""

    def start(folder: str, **variables: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "NVCT_RESULTS_DIR": str(tmp_path / folder),
            "NVCT_PROGRESS_FILE_PATH": str(tmp_path / folder / "progress"),
            "NVCT_TASK_ID": "task-1",
            "SHARED_CONFIG_DIR": str(tmp_path / folder / "shared"),
            **variables,
        }
        command = [sys.executable, "-m", "nvcf_worker", str(EXAMPLES / "task" / "task.py")]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    def progress() -> float:
        file = tmp_path / "stopped" / "progress"
        return float(json.loads(file.read_bytes())["percentComplete"]) if file.exists() else 0.0

    whole = start("whole")
    stopped = start("stopped")
    try:
        await eventually(lambda: progress() > 0, "it has begun")
        stopped.send_signal(signal.SIGTERM)
        await eventually(lambda: stopped.poll() is not None, "it has stopped")
        assert stopped.returncode == 143
        assert 0 < progress() < 100
        stopped = start("stopped")
        await eventually(lambda: None not in (whole.poll(), stopped.poll()), "both are through", 60)
        assert (whole.returncode, stopped.returncode) == (0, 0)
    finally:
        for process in (whole, stopped):
            process.kill()
            process.wait()
    assert progress() == 100
    estimates = [float((tmp_path / folder / "pi.txt").read_text()) for folder in ("whole", "stopped")]
    assert estimates[0] == estimates[1] == pytest.approx(3.14159, abs=0.01)
