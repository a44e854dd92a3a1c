"""D: what the terminal did not say: limits, a stopped autoscaler, logs afterwards, what `down` waits for."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from nvcf_cli.errors import UsageError
from nvcf_cli.local.processes import checked_quotas
from nvcf_cli.main import run
from tests.support.platform.nvcf_up import LocalUp, local_up
from tests.support.waiting import eventually

FUNCTION = """
import time

def handler(request):
    print("asked for", request.read().decode(), flush=True)
    time.sleep(float(request.read().decode()))
    return "done"
"""


@pytest.mark.slow
async def test_d_a_platform_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with local_up(tmp_path, "--quota", "queued-requests=7") as up:
        quotas = json.loads(await up.ok("quotas", "--json"))
        assert {each["quota"]: each["limit"] for each in quotas}["queued-requests"] == 7
        function = await up.deploy("slow", FUNCTION)
        path = f"/v2/nvcf/pexec/functions/{function}"
        async with up.session() as session, session.post(path, data=b"0") as response:
            assert response.status == 200
        await names_the_stopped_autoscaler(up)
        async with up.session() as session:
            calling = asyncio.ensure_future(session.post(path, data=b"600"))
            await eventually(lambda: "asked for 600" in logged(up), "the request runs")
            code, out, said = await up.run("down")
            (await calling).close()
        assert code == 0
        assert "everything is stopped" in out
        assert "waiting for running requests, 20 s at most" in " ".join(said.split())
    # Without a platform.
    assert run(["logs", "slow", "--data", str(up.data)]) == 0
    assert "asked for 600" in capsys.readouterr().out
    assert run(["logs", "unknown", "--data", str(up.data)]) == 1
    assert "no log of a function called unknown" in capsys.readouterr().err


def logged(up: LocalUp) -> str:
    return "".join(path.read_text() for path in (up.data / "logs" / "slow").glob("*.log"))


async def names_the_stopped_autoscaler(up: LocalUp) -> None:
    autoscaler = int(up.state["children"]["autoscaler"]["pid"])
    os.kill(autoscaler, signal.SIGSTOP)
    try:
        (up.folder / "other.py").write_text(FUNCTION)
        code, _, error = await up.run("deploy", str(up.folder / "other.py"), "--timeout", "8")
        assert code == 1
        assert "no autoscaler leads" in " ".join(error.split())
    finally:
        os.kill(autoscaler, signal.SIGCONT)


def test_d_quotas_are_checked_before_anything_starts() -> None:
    assert checked_quotas(["keys=3", "account:functions=0"]) == ("keys=3", "account:functions=0")
    with pytest.raises(UsageError, match="--quota nothing=3"):
        checked_quotas(["nothing=3"])
