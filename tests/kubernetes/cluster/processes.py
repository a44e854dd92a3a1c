"""The long-running programs of a test cluster: each with a log, killed together in reverse order."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.kubernetes.cluster.errors import ClusterError

LOG_TAIL = 3000

_ENDS_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


class Processes:
    """Programs whose output goes to `folder/NAME.log`. They also end when this process dies."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], descriptors: Sequence[int] = ()) -> int:
        """Start a program with open file descriptors, and return its process id."""
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(
                [*_ENDS_WITH_PARENT, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
                start_new_session=True,
            )
        self._running[name] = process
        return process.pid

    def check(self) -> None:
        """Raise `ClusterError` with the end of its log if a program has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise ClusterError(f"{name} ended with {process.returncode}:\n{self.tail(name)}")

    def tail(self, name: str) -> str:
        """Return the end of a program's log."""
        return self._log(name).read_text(errors="replace")[-LOG_TAIL:]

    def pids(self) -> dict[str, int]:
        """Return the process ids by program."""
        return {name: process.pid for name, process in self._running.items()}

    def stop(self) -> None:
        """Kill every program, the last started first. What they leave is thrown away."""
        for process in reversed(self._running.values()):
            process.kill()
            process.wait()
        self._running.clear()

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 120.0) -> None:
        """Wait until a condition holds. Raises `ClusterError` after `seconds`, or if a program ends."""
        wait_until(condition, what, seconds, self.check)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def wait_until(
    condition: Callable[[], object],
    what: str,
    seconds: float = 120.0,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Wait until a condition holds; `check` raises what makes waiting pointless. Raises `ClusterError`."""
    deadline = time.monotonic() + seconds
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise ClusterError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
