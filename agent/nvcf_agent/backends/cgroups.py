"""Limits of instances by control groups, version 2 (cgroups(7), the kernel's cgroup-v2 document).

Each limited instance gets a group of its own below a group of its agent. That needs the controllers `memory`
and `cpu` and the right to create groups. Where this is missing, the agent logs it once and runs instances
without limits.
"""

import contextlib
import hashlib
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvcf_agent.state.inventory import Limits
from nvcf_agent.state.managed_instance import Category
from nvcf_broker.process import describe_exit

_log = logging.getLogger(__name__)

CPU_PERIOD_MICROSECONDS = 100_000
_CONTROLLERS = ("memory", "cpu")
# The shell enters the group and then becomes the program, so nothing of it ever runs outside.
_ENTER = 'echo 0 > "$1" && shift && exec "$@"'
_ENTER_NAME = "nvcf-limits"


def limit_files(limits: Limits) -> dict[str, str]:
    """Return the contents of a group's files for these limits. Pure."""
    files = {}
    if limits.memory is not None:
        files["memory.max"] = str(limits.memory)
        # An instance at its limit ends with a reason instead of swapping.
        files["memory.swap.max"] = "0"
        files["memory.oom.group"] = "1"
    if limits.cpus is not None:
        files["cpu.max"] = f"{round(limits.cpus * CPU_PERIOD_MICROSECONDS)} {CPU_PERIOD_MICROSECONDS}"
    return files


def oom_kills(events: str) -> int:
    """Return the counter `oom_kill` in the text of a `memory.events` or `/proc/vmstat`. Pure."""
    for line in events.splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.strip().isdigit():
            return int(count)
    return 0


def own_group(mountinfo: str, cgroup: str) -> Path | None:
    """Return this process' group by the texts of /proc/self/mountinfo and /proc/self/cgroup. Pure."""
    mount = None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 ") and len(left.split()) > 4:
            mount = Path(left.split()[4])
    for line in cgroup.splitlines():
        if line.startswith("0::") and mount is not None:
            return mount / line[3:].lstrip("/")
    return None


class LimitsUnavailable(Exception):
    """Control groups cannot be used here. The text says why and what helps."""


@dataclass(frozen=True)
class Group:
    """The control group of one instance. Its methods block for a write to a kernel file."""

    path: Path

    def command(self, command: Sequence[str]) -> list[str]:
        """Return a command line that runs `command` in the group, as the same process."""
        return ["/bin/sh", "-c", _ENTER, _ENTER_NAME, str(self.path / "cgroup.procs"), *command]

    def oom_kills(self) -> int:
        """Return how many processes the kernel has killed because the group was out of memory."""
        with contextlib.suppress(OSError):
            return oom_kills((self.path / "memory.events").read_text())
        return 0

    def remove(self) -> None:
        """Kill everything in the group and remove it. A group that stays is logged."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            _log.debug("the control group %s is still there: %s", self.path, error)


class Groups:
    """The control groups of one agent's instances."""

    def __init__(self, home: Path) -> None:
        self._home = home

    @classmethod
    def open(cls, data: Path, parent: Path | None = None) -> "Groups":
        """Create the agent's group below `parent` (default: its own group), and enable the controllers.

        Raises `LimitsUnavailable`.
        """
        base = parent or _found_group()
        if base is None:
            raise LimitsUnavailable("there are no control groups of version 2 here")
        name = "nvcf-" + hashlib.sha256(str(data).encode()).hexdigest()[:12]
        home = base / name
        try:
            offered = set((base / "cgroup.controllers").read_text().split())
            missing = [each for each in _CONTROLLERS if each not in offered]
            if missing:
                raise LimitsUnavailable(
                    f"the controllers {' and '.join(missing)} are not available in {base}"
                )
            _enable(base)
            home.mkdir(exist_ok=True)
            _enable(home)
        except OSError as error:
            raise LimitsUnavailable(
                f"{error.strerror} at {error.filename or base}: name a group that was delegated to this user "
                "with --cgroup"
            ) from error
        groups = cls(home)
        for left in home.iterdir():
            if left.is_dir():
                Group(left).remove()
        return groups

    def make(self, instance_id: str, limits: Limits) -> Group:
        """Create the group of an instance with its limits. Raises OSError."""
        path = self._home / instance_id
        path.mkdir(exist_ok=True)
        for name, text in limit_files(limits).items():
            try:
                (path / name).write_text(text)
            except FileNotFoundError:
                # A kernel without swap accounting or group kill still enforces the limit itself.
                if name in ("memory.max", "cpu.max"):
                    raise
        return Group(path)


def _enable(group: Path) -> None:
    control = group / "cgroup.subtree_control"
    enabled = set(control.read_text().split())
    wanted = [f"+{each}" for each in _CONTROLLERS if each not in enabled]
    if wanted:
        control.write_text(" ".join(wanted))


def _found_group() -> Path | None:
    try:
        return own_group(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    except OSError:
        return None


def machine_oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory; 0 where that is unknown."""
    with contextlib.suppress(OSError):
        return oom_kills(Path("/proc/vmstat").read_text())
    return 0


_MIB = 2**20


def describe_end(
    code: int,
    *,
    terminating: bool,
    limit: int | None,
    group_oom_kills: int,
    machine_oom_kills: int,
) -> tuple[Category, str]:
    """Return the category of an exit and the first line of its reason. Pure.

    `code` is an exit code as `asyncio` reports it, `limit` the instance's memory limit in bytes.
    `group_oom_kills` are those in the instance's group, `machine_oom_kills` those on the machine while it
    ran, which may be of others.
    """
    how = describe_exit(code)
    if group_oom_kills > 0:
        size = f" of {limit // _MIB} MiB" if limit is not None else ""
        return Category.OUT_OF_MEMORY, f"out of memory: it reached its limit{size} ({how})"
    if code == -signal.SIGKILL and machine_oom_kills > 0 and not terminating:
        return Category.OUT_OF_MEMORY, f"out of memory: the machine had none left ({how})"
    return Category.CRASH, how
