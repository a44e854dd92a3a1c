"""Real processes in tests: started with their output in files, always ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from nvcf_broker.process import spawn


class Child:
    """One child process whose standard error goes to `log`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, SIGKILL unless told otherwise."""
        if self.running:
            self.process.send_signal(number)

    async def wait(self, timeout: float = 20.0) -> int:
        """Exit code."""
        async with asyncio.timeout(timeout):
            return await self.process.wait()

    async def first_line(self, timeout: float = 30.0) -> str:
        """First line of standard output; fails with the log when the process ends instead."""
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout):
            line = await self.process.stdout.readline()
        if not line:
            raise AssertionError(f"process ended without a word: {self.text()[-4000:]}")
        return line.decode()

    def text(self) -> str:
        """Its standard error so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def resident_mib(self) -> float:
        """Resident memory."""
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def start(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Child:
    """Start a child; see `child_process` for one that is ended by a context."""
    with log.open("ab") as file:
        process = await spawn(
            list(command),
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            env=dict(environment) if environment is not None else None,
            cwd=cwd,
        )
    return Child(process, log)


async def end(child: Child) -> None:
    """SIGKILL, and reap."""
    child.kill()
    await child.wait()


@contextlib.asynccontextmanager
async def child_process(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """A child for the length of a context."""
    child = await start(command, log=log, environment=environment)
    try:
        yield child
    finally:
        await end(child)


def python(*arguments: str) -> list[str]:
    """A command line of this Python."""
    return [sys.executable, *arguments]
