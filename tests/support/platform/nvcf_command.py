"""The nvcf command on a data folder of its own, and the processes that it starts."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nvcf_broker.process import spawn
from tests.support.waiting import eventually

WAIT = 60.0


HELLO = """
from nvcf_worker import Request

async def handler(request: Request) -> dict[str, str]:
    print("asked", flush=True)
    return {"greeting": f"Hello, {(await request.json())['name']}!"}
"""


# Hangs at the first request only: a second worker, or the same one restarted, responds at once.
SLOW = """
import os, time
from pathlib import Path
from nvcf_worker import Request

def handler(request: Request) -> str:
    first = Path(os.environ["MARKER"])
    if not first.read_text():
        first.write_text(str(os.getpid()))
        time.sleep(600)
    return f"answered by {os.getpid()}"
"""


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)


@dataclass
class Local:
    """A data folder and the commands on it."""

    folder: Path
    up: asyncio.subprocess.Process | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("NVCF_")}
        return {**inherited, "NVCF_HOME": str(self.data), "NO_COLOR": "1"}

    async def run(self, *arguments: str, data: bytes = b"") -> Ran:
        process = await spawn(
            [sys.executable, "-m", "nvcf_cli", *arguments],
            env=self.environment(),
            cwd=self.folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(data), WAIT)
        assert "Traceback" not in err.decode() or "the function does not start" in err.decode()
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    async def ok(self, *arguments: str, data: bytes = b"") -> str:
        ran = await self.run(*arguments, data=data)
        assert ran.code == 0, ran
        return ran.out

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        with (self.folder / "up.out").open("ab") as log:
            self.up = await spawn(
                [sys.executable, "-m", "nvcf_cli", "up", "--http-port", "0", *arguments],
                env=self.environment(),
                stdout=log,
                stderr=log,
            )
        up = self.up
        await eventually(lambda: (self.data / "state.json").exists() or up.returncode is not None)
        assert up.returncode is None, self.said()
        return up

    def said(self) -> str:
        return (self.folder / "up.out").read_text()

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    async def status(self) -> dict[str, Any]:
        return dict((await self.run("status", "--json")).json())

    async def instances(self) -> list[dict[str, Any]]:
        return list((await self.run("instances", "--json")).json())

    async def running(self) -> list[str]:
        """Return the version of each running instance."""
        return [each["functionVersionId"] for each in await self.instances() if each["state"] == "RUNNING"]

    async def serves(self) -> bool:
        """Return whether an instance runs."""
        return bool(await self.running())

    async def hello(self) -> str:
        return await self.ok("invoke", "hello", "--data", '{"name": "Ada"}')

    def processes(self) -> list[psutil.Process]:
        """Return the processes of this platform: their environment has the data folder."""
        return list(processes_of(self.data))


def processes_of(data: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                variables = process.environ()
                ours = variables.get("NVCF_HOME") == str(data)
                if ours or variables.get("SHARED_CONFIG_DIR", "").startswith(f"{data}/"):
                    yield process


@contextlib.asynccontextmanager
async def nvcf_commands(folder: Path) -> AsyncIterator[Local]:
    """Yield commands on a data folder in `folder`, and end what they started."""
    made = Local(folder)
    try:
        yield made
    finally:
        if made.up is not None and made.up.returncode is None:
            made.up.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(made.up.wait(), 30)
        for process in made.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
