"""E6: a server behind the sidecar that answers 202 itself could not be polled: its callers got 504."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.http.user_server import Script, Seen, UserServer, user_server
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.waiting import eventually

STATUS = "/v2/nvcf/pexec/status/"
FUNCTION = "from nvcf_worker import sidecar\nsidecar()\n"


class Stage:
    """A platform, a version and a worker beside a server of the test."""

    def __init__(self, platform: Platform, version: Version, server: UserServer) -> None:
        self.platform, self.version, self.server = platform, version, server

    async def ask(self, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Make a call. Returns status, headers in lower case, body."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent |= self.platform.authorization()
        url = self.platform.gateway.url + path
        data = b'{"a": 1}' if method == "POST" else None
        async with self.platform.session.request(method, url, data=data, headers=sent) as response:
            found = {name.lower(): value for name, value in response.headers.items()}
            return response.status, found, await response.read()

    async def begin(self, pass_through: bool, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Make the first call."""
        if pass_through:
            return await self.ask("POST", "/own/path", function_id=self.version.function_id, **headers)
        return await self.ask("POST", self.version.pexec, **headers)

    async def poll(self, request_id: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Poll for a request."""
        return await self.ask("GET", STATUS + request_id, **headers)


@contextlib.asynccontextmanager
async def stage(directory: Path, script: Script, *, keep_queued: bool = False) -> AsyncIterator[Stage]:
    async with user_server(script) as server, running_platform(directory) as platform:
        version = await platform.deployed_version(keep_queued=keep_queued)
        file = directory / "function.py"
        file.write_text(FUNCTION)
        worker = await platform.start_worker(version, file, environment={"INFERENCE_PORT": str(server.port)})
        # Some calls here wait for a second only.
        await eventually(lambda: "pulling requests" in worker.text(), "ready", story=worker.text)
        yield Stage(platform, version, server)


async def send(seen: Seen, status: str, body: bytes, *headers: str) -> None:
    """Answer one request."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    await seen.send("\r\n".join(lines).encode() + body)


def long_polling(polls: int) -> Script:
    """Answer 202 to the first request and to all polls but the last one."""
    asked = 0

    async def script(seen: Seen) -> None:
        nonlocal asked
        request_id = seen.all("nvcf-reqid")[0]
        if seen.line.startswith("POST"):
            asked = 0
        else:
            asked += 1
        if asked < polls:
            extra = (f"NVCF-REQID: {request_id}", f"NVCF-PERCENT-COMPLETE: {10 * asked}", "X-Own: yes")
            await send(seen, "202 Accepted", f"part {asked}".encode(), *extra)
        else:
            await send(seen, "200 OK", b"the end", "X-Own: yes")

    return script


@pytest.mark.parametrize("keep_queued", [False, True])
@pytest.mark.parametrize("pass_through", [True, False])
async def test_each_poll_reaches_the_function(tmp_path: Path, pass_through: bool, keep_queued: bool) -> None:
    async with stage(tmp_path, long_polling(2), keep_queued=keep_queued) as play:
        status, headers, body = await play.begin(pass_through)
        assert (status, body, headers["x-own"]) == (202, b"part 0", "yes")
        request_id = headers["nvcf-reqid"]
        status, headers, body = await play.poll(request_id, x_poll="1")
        assert (status, headers["nvcf-status"], body) == (202, "in-progress", b"part 1")
        assert headers["nvcf-percent-complete"] == "10"
        status, headers, body = await play.poll(request_id)
        assert (status, headers["nvcf-status"], body) == (200, "fulfilled", b"the end")
        first, *polls = play.server.seen
        assert first.line.startswith("POST /own/path " if pass_through else "POST / ")
        # The version's own path, the same request.
        assert [each.line for each in polls] == ["GET / HTTP/1.1"] * 2
        assert {each.all("nvcf-reqid")[0] for each in play.server.seen} == {request_id}
        assert polls[0].all("x-poll") == ["1"]
        await play.platform.queue_is_empty(play.version)


async def test_its_place_is_held_between_polls(tmp_path: Path) -> None:
    """One slot: the next request waits until the first one has ended."""
    async with stage(tmp_path, long_polling(1)) as play:
        request_id = (await play.begin(True))[1]["nvcf-reqid"]
        second = asyncio.create_task(play.begin(True))
        # There is no sign of a request that is not taken; the poll below comes before it in any case.
        await asyncio.sleep(0.5)
        assert len(play.server.seen) == 1
        assert (await play.poll(request_id))[2] == b"the end"
        other = (await second)[1]["nvcf-reqid"]
        assert [each.all("nvcf-reqid")[0] for each in play.server.seen] == [request_id, request_id, other]


async def test_a_cancelled_request_frees_its_place(tmp_path: Path) -> None:
    async with stage(tmp_path, long_polling(5)) as play:
        request_id = (await play.begin(True))[1]["nvcf-reqid"]
        assert (await play.ask("DELETE", STATUS + request_id))[0] == 204
        await play.platform.queue_is_empty(play.version)
        assert (await play.begin(True))[0] == 202


async def test_nobody_polls(tmp_path: Path) -> None:
    """A request that nobody polls for is given up after twice its poll time, at least 10 s."""
    async with stage(tmp_path, long_polling(2)) as play:
        request_id = (await play.begin(True, nvcf_poll_seconds="1"))[1]["nvcf-reqid"]
        await play.platform.queue_is_empty(play.version)
        assert len(play.server.seen) == 1
        answer = await play.poll(request_id)
        assert answer[0] == 504, answer


async def test_a_kept_request_ends_without_polls(tmp_path: Path) -> None:
    """Its result is kept: where nobody polls, the worker asks the function itself."""
    async with stage(tmp_path, long_polling(2), keep_queued=True) as play:
        request_id = (await play.begin(False, nvcf_poll_seconds="1"))[1]["nvcf-reqid"]
        await play.platform.queue_is_empty(play.version)
        assert len(play.server.seen) == 3
        assert (await play.poll(request_id))[2] == b"the end"
        assert len(play.server.seen) == 3


async def test_a_streamed_202_is_passed_on(tmp_path: Path) -> None:
    """The head of a 202 does not say how long its body is."""

    async def script(seen: Seen) -> None:
        if seen.line.startswith("POST"):
            await seen.send(b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n")
            await seen.send(b"3\r\none\r\n0\r\n\r\n")
        else:
            await send(seen, "200 OK", json.dumps({"done": True}).encode())

    async with stage(tmp_path, script) as play:
        status, headers, body = await play.begin(True)
        assert (status, body) == (202, b"partone")
        assert json.loads((await play.poll(headers["nvcf-reqid"]))[2]) == {"done": True}


async def test_a_poll_that_comes_while_the_function_is_asked(tmp_path: Path) -> None:
    """All callers that wait get what the function answers."""
    gate = asyncio.Event()

    async def script(seen: Seen) -> None:
        if seen.line.startswith("POST"):
            await send(seen, "202 Accepted", b"")
            return
        await gate.wait()
        await send(seen, "200 OK", b"the end")

    async with stage(tmp_path, script) as play:
        request_id = (await play.begin(True))[1]["nvcf-reqid"]
        polls = [asyncio.create_task(play.poll(request_id)) for _ in range(2)]
        await eventually(lambda: len(play.server.seen) == 2, "the function is asked")
        gate.set()
        answers = [await poll for poll in polls]
        assert (200, b"the end") in [(status, body) for status, _, body in answers]
        assert {status for status, _, _ in answers} <= {200, 404, 504}
