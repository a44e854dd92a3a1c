"""The platform, run with the `nvcf` command in its own data folder."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from examples.demo.failure import DemoFailure
from examples.demo.preflight import nvcf_command
from examples.demo.processes import Process, descendants, process_table, still_alive
from examples.demo.screen import Step

from nvcf_broker.errors import ProcessError
from nvcf_broker.process import signal_group, spawn

START_DEADLINE = 45.0
COMMAND_DEADLINE = 90.0
STOP_DEADLINE = 20.0
POLL = 0.1
TAIL_LINES = 6
# A platform that dies takes its connections along a moment before its end is known here.
END_NOTICE = 0.5


class Platform:
    """`nvcf up` as a child process. The kernel sends it SIGTERM if the demo is killed."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "nvcf-up.log"
        self._data = folder / "data"
        self._up: asyncio.subprocess.Process | None = None
        self._seen: dict[tuple[int, int], Process] = {}
        self.url = ""
        self.key = ""

    @property
    def was_started(self) -> bool:
        return self._up is not None

    async def start(self, step: Step, *flags: str) -> None:
        """Start the platform, wait until it is ready, and set `url` and `key`. Raises `DemoFailure`."""
        self._data.mkdir(parents=True)
        with self._log.open("wb") as log:
            self._up = await self._spawn("up", "--http-port", "0", *flags, stdout=log.fileno())
        deadline = time.monotonic() + START_DEADLINE
        while not self._read_state():
            if self._up.returncode is not None:
                raise DemoFailure(f"nvcf up ended with status {self._up.returncode} before it was ready")
            if time.monotonic() > deadline:
                raise DemoFailure(f"nvcf up was not ready within {START_DEADLINE:.0f} s")
            step.note = self._last_log_line()
            await asyncio.sleep(POLL)
        self.notice()

    def _read_state(self) -> bool:
        """Read the file that `nvcf up` writes when it is ready, and removes when it ends."""
        try:
            state = json.loads((self._data / "state.json").read_text(encoding="utf-8"))
            self.url = state["url"]
            self.key = Path(state["keyFile"]).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DemoFailure(f"what nvcf up says of itself cannot be understood ({error!r})") from error
        return True

    async def deploy(self, step: Step, file: Path, name: str, *flags: str) -> None:
        """Deploy a function and wait until it is ready. Raises `DemoFailure` with the command's message."""
        await self._command(step, "deploy", str(file), "--name", name, *flags)
        self.notice()

    async def stop(self, step: Step) -> str:
        """Ends the platform with `nvcf down` and looks whether a process is left, which is then killed.

        Returns a sentence about it. Raises `DemoFailure` if the platform had ended before or was killed here.
        """
        self.notice()
        count = len(self._left())
        started = time.monotonic()
        try:
            if self._up is None or self._up.returncode is not None:
                raise DemoFailure("nvcf up had ended already")
            await self._command(step, "down")
            await self._wait_until_gone(step)
        finally:
            left = self._left()
            await self._kill(left)
        if left:
            names = ", ".join(f"{process.pid} ({process.command[:60]})" for process in left)
            raise DemoFailure(f"these processes had to be killed: {names}")
        return f"{count} processes ended in {time.monotonic() - started:.1f} s, none is left"

    def notice(self) -> None:
        """Record the current processes of the platform."""
        if self._up is not None:
            for process in descendants(process_table(), self._up.pid):
                self._seen[process.identity] = process

    async def explain_end(self) -> str:
        """Return an explanation for a failure if the platform ended by itself, else an empty text."""
        if self._up is None:
            return ""
        with suppress(TimeoutError):
            status = await asyncio.wait_for(self._up.wait(), END_NOTICE)
            return f" (nvcf up has ended, status {status})"
        return ""

    def log_tails(self) -> list[tuple[str, list[str]]]:
        """Return the name and the last lines of each log file."""
        paths = [self._log, *sorted(self._data.rglob("*.log"))]
        return [(path.name, lines) for path in paths if (lines := _tail(path))]

    async def _spawn(self, *arguments: str, stdout: int) -> asyncio.subprocess.Process:
        # Without the variables that would send the commands to another platform (NVCF_URL, NVCF_API_KEY).
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NVCF_")}
        environment |= {"NVCF_HOME": str(self._data), "NO_COLOR": "1"}
        try:
            return await spawn(
                [str(nvcf_command()), *arguments],
                env=environment,
                stdout=stdout,
                stderr=asyncio.subprocess.STDOUT,
                death_signal=signal.SIGTERM,
            )
        except ProcessError as error:
            raise DemoFailure(str(error)) from error

    async def _command(self, step: Step, *arguments: str) -> None:
        """Run one `nvcf` command. The step shows its latest line. Raises `DemoFailure` with its last line."""
        child = await self._spawn(*arguments, stdout=asyncio.subprocess.PIPE)
        said = "nothing"
        try:
            async with asyncio.timeout(COMMAND_DEADLINE):
                while child.stdout and (line := await child.stdout.readline()):
                    if text := line.decode("utf-8", "replace").strip():
                        step.note = said = text
                status = await child.wait()
        except TimeoutError:
            limit = f"{COMMAND_DEADLINE:.0f} s"
            raise DemoFailure(f"nvcf {arguments[0]} took more than {limit}; its last line: {said}") from None
        finally:
            if child.returncode is None:
                signal_group(child.pid, signal.SIGKILL)
                await child.wait()
        if status:
            raise DemoFailure(f"nvcf {arguments[0]} ended with status {status}: {said}")
        step.note = ""

    def _left(self) -> list[Process]:
        return still_alive(self._seen.values(), process_table())

    async def _wait_until_gone(self, step: Step) -> None:
        deadline = time.monotonic() + STOP_DEADLINE
        while (left := self._left()) and time.monotonic() < deadline:
            step.note = f"{len(left)} processes are ending"
            await asyncio.sleep(POLL)

    async def _kill(self, processes: list[Process]) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if self._up is not None:
            await self._up.wait()

    def _last_log_line(self) -> str:
        lines = _tail(self._log)
        return lines[-1] if lines else ""


def _tail(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
    except OSError:
        return []
    lines = data[-64 * 1024 :].decode("utf-8", "replace").splitlines()
    return [readable(line) for line in lines if line.strip()][-TAIL_LINES:]


def readable(line: str) -> str:
    """Return a JSON log line as time, level and message, and any other line unchanged."""
    try:
        record = json.loads(line)
        text = f"{record['time'][11:19]} {record['level'].lower():7} {record['message']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return line
    return text
