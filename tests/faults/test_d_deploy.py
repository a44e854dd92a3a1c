"""D1: a deployment that cannot start says why while it waits, and what ends it."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from nvcf_broker.process import spawn
from tests.support.platform.nvcf_command import HELLO, nvcf_commands
from tests.support.waiting import eventually


# Longer than the time-outs of its waits.
@pytest.mark.timeout(400)
async def test_d1_deploy_says_why_it_waits(tmp_path: Path) -> None:
    async with nvcf_commands(tmp_path) as local:
        await local.start("--gpus", "1")
        said = tmp_path / "deploy.out"
        with said.open("wb") as out:
            deploying = await spawn(
                [sys.executable, "-m", "nvcf_cli", "deploy", local.write("hello.py", HELLO), "--gpu", "H100"],
                env=local.environment(),
                stdout=out,
                stderr=out,
            )
        why = "no GPU H100, only CPU, SIM"
        await eventually(lambda: why in said.read_text(), "the reason", 120, story=said.read_text)
        deploying.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(deploying.wait(), 60) == 130
        assert "nvcf undeploy hello ends it" in said.read_text()
