"""A whole platform on this machine, as `nvcf up` starts it, and the commands on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from nvcf_broker.process import spawn
from tests.support.waiting import eventually

WAIT = 90.0


@dataclass
class LocalUp:
    """A running `nvcf up`."""

    folder: Path
    process: asyncio.subprocess.Process

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self.folder / "data"

    @property
    def state(self) -> dict[str, Any]:
        """Content of its state file."""
        return dict(json.loads((self.data / "state.json").read_text()))

    @property
    def url(self) -> str:
        """Address of the gateway."""
        return str(self.state["url"])

    @property
    def key(self) -> str:
        """The admin key."""
        return (self.data / "admin.key").read_text().strip()

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run an `nvcf` command. Returns exit code, output and errors."""
        process = await spawn(
            [sys.executable, "-m", "nvcf_cli", *arguments],
            env=environment(self.data),
            cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(WAIT):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def ok(self, *arguments: str) -> str:
        """Run a command that must succeed. Returns its output."""
        code, out, err = await self.run(*arguments)
        assert code == 0, (arguments, out, err)
        return out

    async def deploy(self, name: str, source: str, *flags: str) -> str:
        """Write a function to a file and deploy it. Returns its id."""
        file = self.folder / f"{name}.py"
        file.write_text(source)
        await self.ok("deploy", str(file), *flags)
        listed = json.loads(await self.ok("functions", "--json"))
        return next(str(each["id"]) for each in listed if each["name"] == name)

    def session(self) -> aiohttp.ClientSession:
        """Return an HTTP session with the admin key."""
        return aiohttp.ClientSession(
            self.url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=aiohttp.ClientTimeout(total=WAIT),
            connector=aiohttp.TCPConnector(limit=0),
        )


def environment(data: Path) -> dict[str, str]:
    """Return the variables of a command on a data folder, without the caller's NVCF and OTEL settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NVCF_", "OTEL_"))}
    return {**kept, "NVCF_HOME": str(data), "NO_COLOR": "1"}


@contextlib.asynccontextmanager
async def local_up(folder: Path, *flags: str, **variables: str) -> AsyncIterator[LocalUp]:
    """Run `nvcf up` on free ports. It is stopped at the end, or killed if that takes too long."""
    log = folder / "up.log"
    with log.open("ab") as out:
        process = await spawn(
            [sys.executable, "-m", "nvcf_cli", "up", "--http-port", "0", *flags],
            env={**environment(folder / "data"), **variables},
            stdout=out,
            stderr=out,
        )
    up = LocalUp(folder, process)
    try:
        await eventually(
            lambda: (up.data / "state.json").exists() or process.returncode is not None,
            "nvcf up is ready",
            WAIT,
            story=log.read_text,
        )
        assert process.returncode is None, log.read_text()
        yield up
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(40):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
