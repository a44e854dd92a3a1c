"""Processes that instances of an earlier agent have left."""

import os
import signal
from pathlib import Path

from nvcf_proto import environment as names


def find_orphans(instances: Path, processes: Path = Path("/proc")) -> list[int]:
    """Return the ids of processes whose SHARED_CONFIG_DIR is below `instances`. Empty without /proc.

    The kernel kills the workers with the agent (PR_SET_PDEATHSIG), but not the processes that workers
    started. Their environment names an instance folder, which only this agent's data folder contains.
    Processes of other users cannot be read and are never orphans of this agent.
    """
    marker = f"{names.SHARED_CONFIG_DIR}={instances}/".encode()
    found = []
    for entry in processes.glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(entry.name) != os.getpid() and any(each.startswith(marker) for each in variables):
            found.append(int(entry.name))
    return found


def kill_orphans(instances: Path) -> list[int]:
    """Kill all orphans and return their ids. Blocking."""
    killed = []
    for pid in find_orphans(instances):
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
        killed.append(pid)
    return killed
