"""Finding and ending what an agent that was killed has left behind.

The kernel ends the workers themselves (PR_SET_PDEATHSIG); a process that a worker started is told by nobody.
It is recognised by the instance folder in its environment, which belongs to this agent's data folder alone.
"""

import os
import signal
from pathlib import Path

from nvcf_proto import environment as names


def find_leftovers(instances: Path, processes: Path = Path("/proc")) -> list[int]:
    """Process ids whose environment names a folder below `instances` as SHARED_CONFIG_DIR.

    Empty where there is no /proc. Processes of other users cannot be read and are none of ours.
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


def kill_leftovers(instances: Path) -> list[int]:
    """SIGKILL to everything that `find_leftovers` finds; returns their ids. Blocking."""
    killed = []
    for pid in find_leftovers(instances):
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
        killed.append(pid)
    return killed
