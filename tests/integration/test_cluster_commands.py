"""`nvcf cluster` and `nvcf key` on a real gateway: register, show, cordon, rotate, delete."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nvcf_broker.process import spawn
from nvcf_broker.server import LocalBroker
from tests.support.platform.gateways import Platform, control_flags, running_platform
from tests.support.waiting import WAIT


@dataclass
class Command:
    """The `nvcf` command on a platform elsewhere."""

    platform: Platform
    key: str = "admin"

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Return exit code, output and errors."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NVCF_")}
        variables = {
            "NVCF_HOME": str(self.platform.directory / "home"),
            "NVCF_URL": self.platform.gateway.url,
            "NVCF_API_KEY": self.platform.keys[self.key],
        }
        process = await spawn(
            [sys.executable, "-m", "nvcf_cli", *arguments],
            env={**kept, **variables, "NO_COLOR": "1"},
            cwd=self.platform.directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(WAIT):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def ok(self, *arguments: str) -> str:
        """Run a command that must succeed; return its output."""
        code, out, err = await self.run(*arguments)
        assert code == 0, (arguments, out, err)
        return out

    async def json(self, *arguments: str) -> Any:
        """Return the JSON that a command prints."""
        return json.loads(await self.ok(*arguments, "--json"))


@pytest.fixture
async def nvcf(tmp_path: Path) -> AsyncIterator[Command]:
    broker = LocalBroker(tmp_path / "broker")
    async with running_platform(tmp_path, flags=control_flags(broker), broker=broker) as platform:
        yield Command(platform)


async def test_registering_shows_the_key_once_and_how_to_start_the_agent(nvcf: Command) -> None:
    said = await nvcf.ok("cluster", "register", "lab", "--group", "berlin", "--region", "local")
    (cluster,) = await nvcf.json("cluster", "list")
    assert (cluster["clusterName"], cluster["clusterGroupName"]) == ("lab", "berlin")
    assert cluster["clusterId"] in said
    assert f"nvcf-agent --icms {nvcf.platform.gateway.url}" in said
    assert len(re.findall(r"nvcf-[0-9a-f]{12}-", said)) == 1, "its key"
    assert "clusterKey" not in cluster
    assert await nvcf.json("clusters") == [cluster]
    assert "registered" in await nvcf.ok("cluster", "list")
    # A name is good once: another registration of it would be another agent's.
    code, _, err = await nvcf.run("cluster", "register", "lab")
    assert code == 1
    assert "409" in err


async def test_a_key_goes_to_a_file_that_only_its_owner_reads(nvcf: Command) -> None:
    said = await nvcf.ok("cluster", "register", "lab", "--key-out", "lab.key")
    file = nvcf.platform.directory / "lab.key"
    first = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert first.strip() not in said
    assert "--key-file lab.key" in said
    await nvcf.ok("cluster", "rotate", "lab", "--key-out", "lab.key")
    assert file.read_text() != first
    assert "clusterKey" in await nvcf.json("cluster", "rotate", "lab")


@pytest.mark.slow
async def test_cordon_drain_uncordon_and_delete(nvcf: Command) -> None:
    await nvcf.ok("cluster", "register", "lab")
    for action, mode in (("cordon", "CordonOnly"), ("drain", "CordonAndDrain"), ("uncordon", "None")):
        await nvcf.ok("cluster", action, "lab")
        assert (await nvcf.json("cluster", "show", "lab"))["maintenance"] == mode
    assert "lab" in await nvcf.ok("cluster", "show", "lab")
    await nvcf.ok("cluster", "delete", "lab", "--force")
    assert await nvcf.json("cluster", "list") == []
    code, _, err = await nvcf.run("cluster", "show", "lab")
    assert (code, "nvcf cluster register" in err) == (1, True)


async def test_who_may_not_administer_is_told_and_still_sees_what_is_live(nvcf: Command) -> None:
    await nvcf.ok("cluster", "register", "lab")
    guest = Command(nvcf.platform, "list")
    assert await guest.json("cluster", "list") == []
    code, _, err = await guest.run("cluster", "register", "other")
    assert (code, "403" in err) == (1, True)


async def test_keys_are_made_listed_and_revoked(nvcf: Command) -> None:
    made = await nvcf.json("key", "create", "--scope", "list", "--description", "ci", "--days", "1")
    nvcf.platform.keys["made"] = made["key"]
    assert await Command(nvcf.platform, "made").json("functions") == []
    assert made["id"] in await nvcf.ok("key", "list")
    assert made["key"] not in await nvcf.ok("key", "list")
    await nvcf.ok("key", "delete", made["key"])
    assert made["id"] not in [each["id"] for each in await nvcf.json("key", "list")]
    said = await nvcf.ok("key", "create", "-s", "invoke", "--key-out", "ci.key")
    key = (nvcf.platform.directory / "ci.key").read_text().strip()
    assert key not in said


@pytest.mark.slow
async def test_functions_as_records(nvcf: Command) -> None:
    image = "registry.example.com/echo:1"
    first = await nvcf.json("function", "create", "echo", "--image", image, "--tag", "stage:dev")
    again = await nvcf.json("function", "create", "echo", "--image", image)
    assert again["id"] == first["id"]
    shown = await nvcf.json("function", "show", "echo")
    assert [each["containerImage"] for each in shown["versions"]] == [image, image]
    assert image in await nvcf.ok("function", "show", "echo")
    await nvcf.ok("function", "delete", "echo", "--version", first["versionId"])
    await nvcf.ok("deploy", "--image", image, "--no-wait", "--max", "2")
    await nvcf.ok("scale", "echo", "--max", "3", "--concurrency", "2")
    (version,) = [
        each for each in (await nvcf.json("function", "show", "echo"))["versions"] if each["deployment"]
    ]
    (specification,) = version["deployment"]["deploymentSpecifications"]
    assert (specification["maxInstances"], specification["maxRequestConcurrency"]) == (3, 2)
    code, _, err = await nvcf.run("function", "delete", "echo")
    assert (code, "nvcf undeploy echo" in err) == (1, True)
    await nvcf.ok("undeploy", "echo")
    await nvcf.ok("function", "delete", "echo")
    assert await nvcf.json("function", "list", "--all") == []
