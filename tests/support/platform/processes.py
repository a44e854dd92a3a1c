"""Child processes of tests. Their output goes to files, and they always end with the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from nvcf_broker.process import spawn
from tests.support.waiting import WAIT, eventually


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
        """Send a signal, by default SIGKILL."""
        if self.running:
            self.process.send_signal(number)

    async def wait(self, timeout: float = WAIT) -> int:
        """Wait for the end of the process. Returns its exit code."""
        async with asyncio.timeout(timeout):
            return await self.process.wait()

    async def first_line(self, timeout: float = WAIT) -> str:
        """Return the first line of standard output. Fails with the log if the process ends first."""
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout):
            line = await self.process.stdout.readline()
        if not line:
            raise AssertionError(f"process ended without output: {self.text()[-4000:]}")
        return line.decode()

    def text(self) -> str:
        """Return its standard error so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def resident_mib(self) -> float:
        """Return its resident memory in MiB."""
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def start(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Child:
    """Start a child. `child_process` also ends it."""
    with log.open("ab") as file:
        process = await spawn(
            list(command),
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            env=dict(environment) if environment is not None else None,
            cwd=cwd,
        )
    return Child(process, log)


@contextlib.asynccontextmanager
async def stopped(pid: int | None) -> AsyncIterator[None]:
    """Hold a process by SIGSTOP for the length of a context.

    The kernel takes time until the last thread has stopped: a process that has others may answer until then.
    """
    assert pid is not None
    threads = Path(f"/proc/{pid}/task")

    def all_stand() -> bool:
        stats = [(each / "stat").read_text() for each in threads.iterdir()]
        return all(text.rpartition(")")[2].split()[0] == "T" for text in stats)

    os.kill(pid, signal.SIGSTOP)
    try:
        await eventually(all_stand, "the process has stopped")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def end(child: Child) -> None:
    """Kill a child and wait for its end."""
    child.kill()
    await child.wait()


@contextlib.asynccontextmanager
async def child_process(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """Run a child for the length of a context."""
    child = await start(command, log=log, environment=environment)
    try:
        yield child
    finally:
        await end(child)


def python(*arguments: str) -> list[str]:
    """Return a command line of this Python."""
    return [sys.executable, *arguments]
