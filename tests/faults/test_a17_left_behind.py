"""A17: who gives up learns how to poll and to cancel what is left; the poll time is the poll time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from pathlib import Path

from nvcf_proto.settings import GATEWAY_EXTRA_WAIT
from tests.support.platform.gateways import Platform, running_platform
from tests.support.platform.nvcf_up import local_up

POLL_SECONDS = 2
# Takes longer than its caller waits; the second request waits in the queue.
FUNCTION = """
import time
def handler(request):
    time.sleep(8)
    return "ok " + request.read().decode()
"""


async def _left_behind(up_invoke: tuple[int, str, str]) -> str:
    code, _, errors = up_invoke
    text = " ".join(errors.split())
    found = re.search(r"nvcf request result ([0-9a-f-]{36})", text)
    assert code == 1, errors
    assert found is not None, errors
    assert f"nvcf request cancel {found.group(1)}" in text
    return found.group(1)


async def test_a17_a_request_left_behind_can_be_fetched_and_cancelled(tmp_path: Path) -> None:
    async with local_up(tmp_path) as up:
        await up.deploy("f", FUNCTION, "--concurrency", "1", "--max", "1")
        invoke = ("invoke", "f", "--timeout", "1", "-H", "NVCF-KEEP-QUEUED=true", "--data")
        first = await _left_behind(await up.run(*invoke, "a"))
        second = await _left_behind(await up.run(*invoke, "b"))
        assert "cancelled" in await up.ok("request", "cancel", second)
        assert (await up.run("request", "result", second, "--timeout", "1"))[0] == 1
        assert (await up.run("request", "cancel", "nonsense"))[0] == 2
        assert await up.ok("request", "result", first) == "ok a"


async def test_a17_a_queued_request_gets_its_202_when_the_poll_time_is_over(tmp_path: Path) -> None:
    """Only a worker is given the extra time."""
    async with running_platform(tmp_path) as platform:
        version = await platform.deployed_version()
        queued = await _call(platform, "POST", version.pexec)
        assert await _comes_first(lambda: _call(platform, "POST", version.pexec))
        assert await _comes_first(lambda: _call(platform, "GET", f"/v2/nvcf/pexec/status/{queued}"))


async def _call(platform: Platform, method: str, path: str) -> str:
    headers = {**platform.authorization(), "NVCF-POLL-SECONDS": str(POLL_SECONDS)}
    url = platform.gateway.url + path
    async with platform.session.request(method, url, headers=headers) as response:
        assert response.status == 202
        return response.headers["NVCF-REQID"]


async def _comes_first(call: Callable[[], Coroutine[None, None, str]]) -> bool:
    """Return whether a call is answered before the extra time is over, in one of three attempts."""
    for _ in range(3):
        calling = asyncio.create_task(call())
        over = asyncio.create_task(asyncio.sleep(POLL_SECONDS + GATEWAY_EXTRA_WAIT))
        done, _ = await asyncio.wait({calling, over}, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        await calling
        if calling in done:
            return True
    return False
