"""`nvcf-worker run`: a function by HTTP alone."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker.local.command import changed, marks
from tests.functions import asgi_app
from tests.support.waiting import eventually

FUNCTION = """
from helper import WORD
from nvcf_worker import BadInput, serve
def handler(request):
    if request.path == "/bad":
        raise BadInput("no")
    if request.path == "/stream":
        return (f"{n}\\n" for n in range(3))
    if request.path == "/break":
        return broken()
    return {"word": WORD, "method": request.method, "target": request.target, "length": len(request.read())}
def broken():
    yield "one"
    raise ValueError
async def coroutine(request):
    async for chunk in request.stream():
        pass
    try:
        import asyncio
        await asyncio.sleep(60)
    finally:
        open("closed", "w").close()
serve(handler)
"""

ASGI = Path(asgi_app.__file__).read_text()


class Running:
    """A process of `nvcf-worker run`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._log = folder / "log"
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "nvcf_worker", "run", *arguments, "--port", "0"]
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

    def text(self) -> str:
        return self._log.read_text()

    async def url(self, starts: int = 1) -> str:
        """Its address, once it has been ready so often."""
        await eventually(
            lambda: self.text().count(": ready\n") >= starts or self.process.poll() is not None, "ready"
        )
        found = re.search(r"for (http://\S+?)(;|\n)", self.text())
        assert found is not None, self.text()
        return found[1]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "function.py").write_text(FUNCTION)
    (tmp_path / "helper.py").write_text("WORD = 'first'")
    started: list[Running] = []

    def start(*arguments: str) -> Running:
        started.append(Running(tmp_path, *arguments))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.wait()


async def test_requests_and_answers_are_those_of_the_platform(run: Callable[..., Running]) -> None:
    running = run("function.py")
    url = await running.url()
    async with aiohttp.ClientSession() as http:
        async with http.put(f"{url}/a%20b?x=1", data=b"y" * 100_000) as answer:
            assert answer.headers["nvcf-reqid"]
            assert await answer.json() == {
                "word": "first", "method": "PUT", "target": "/a%20b?x=1", "length": 100_000
            }  # fmt: skip
        async with http.get(f"{url}/bad") as answer:
            assert (answer.status, answer.content_type) == (400, "application/problem+json")
        async with http.get(f"{url}/stream") as answer:
            assert await answer.text() == "0\n1\n2\n"
        with pytest.raises(aiohttp.ClientPayloadError):
            async with http.get(f"{url}/break") as answer:
                await answer.read()
    running.process.send_signal(signal.SIGINT)
    await eventually(lambda: running.process.poll() == 0, "ended")


async def test_a_caller_that_leaves_cancels_its_request(run: Callable[..., Running]) -> None:
    running = run("function.py:coroutine")
    url = await running.url()

    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    async with aiohttp.ClientSession() as http:
        with pytest.raises(asyncio.TimeoutError):
            await http.post(url, data=body(), timeout=aiohttp.ClientTimeout(total=0.5))
    await eventually((running.folder / "closed").exists, "cancelled")


async def test_a_change_of_the_source_starts_it_again(run: Callable[..., Running]) -> None:
    running = run("function.py", "--reload")
    url = await running.url()
    async with aiohttp.ClientSession() as http:
        (running.folder / "helper.py").write_text("WORD = 'a broken file")
        await eventually(lambda: "SyntaxError" in running.text(), "failed")
        (running.folder / "helper.py").write_text("WORD = 'second word'")
        # The socket stays: a request during the restart only waits.
        async with http.get(url) as answer:
            assert (await answer.json())["word"] == "second word"
    running.process.send_signal(signal.SIGTERM)
    await eventually(lambda: running.process.poll() == 0, "ended")


async def test_an_asgi_application_and_what_is_no_function(
    run: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(ASGI)
    url = await run("app.py").url()
    async with aiohttp.ClientSession() as http, http.get(f"{url}/x") as answer:
        assert (answer.status, (await answer.json())["model"]) == (201, "loaded")
    for target, words in (("missing.py", "there is no file"), ("helper.py", "neither a call of serve()")):
        failed = run(target)
        await eventually(lambda failed=failed: failed.process.poll() == 2, "refused")  # type: ignore[misc]
        assert words in failed.text()
        assert "Traceback" not in failed.text()


def test_changes_are_found_by_time_and_size(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.py").write_text("1")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "c.py").write_text("1")
    (tmp_path / "notes.txt").write_text("1")
    before = marks(tmp_path)
    assert [Path(name).name for name in before] == ["a.py", "b.py"]
    (tmp_path / "a.py").write_text("22")
    (tmp_path / "sub" / "b.py").unlink()
    (tmp_path / "d.py").write_text("")
    assert [Path(name).name for name in changed(before, marks(tmp_path))] == ["a.py", "d.py", "b.py"]


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.integers(), st.integers())))
def test_nothing_changed_is_no_change(found: dict[str, tuple[int, int]]) -> None:
    assert changed(found, dict(found)) == []
    assert changed({}, found) == sorted(found)
