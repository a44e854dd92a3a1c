"""Find the processes of the platform in /proc (Linux)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
ZOMBIE = frozenset("ZX")


@dataclass(frozen=True, slots=True)
class Process:
    """One process. `started` (clock ticks since boot) distinguishes it from a later one with the same id."""

    pid: int
    parent: int
    started: int
    state: str
    command: str = ""

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.started


def parse_stat(text: str, command: str = "") -> Process:
    """Parse /proc/PID/stat (proc_pid_stat(5)). The name in brackets may contain brackets and spaces."""
    before, _, after = text.rpartition(")")
    pid, _, name = before.partition(" (")
    fields = after.split()
    return Process(
        pid=int(pid), parent=int(fields[1]), started=int(fields[19]), state=fields[0], command=command or name
    )


def descendants(table: Iterable[Process], root: int) -> list[Process]:
    """Return the root process and all its descendants."""
    children: dict[int, list[Process]] = {}
    found = []
    for process in table:
        children.setdefault(process.parent, []).append(process)
        if process.pid == root:
            found.append(process)
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [process.pid for process in below]
    return found


def still_alive(seen: Iterable[Process], table: Iterable[Process]) -> list[Process]:
    """Return the processes of `seen` that still run and are not zombies."""
    wanted = {process.identity for process in seen}
    return [process for process in table if process.identity in wanted and process.state not in ZOMBIE]


def process_table() -> list[Process]:
    pids = [int(entry.name) for entry in os.scandir(PROC) if entry.name.isdigit()]
    return [process for pid in pids if (process := _read(pid))]


def _read(pid: int) -> Process | None:
    try:
        stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None  # it ended between the listing and the reading
    return parse_stat(stat, command.strip())
