"""Control groups of a real node: a tree of its own in each hierarchy of version 1 or in version 2's."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.kubernetes.cluster.errors import MissingError

MOUNT = Path("/sys/fs/cgroup")
HIERARCHIES = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
"""Those of version 1."""
_INHERITED = ("cpuset.cpus", "cpuset.mems")


def make(name: str) -> None:
    """Make a tree with a name. Raises `MissingError` if root may not, as in some containers."""
    try:
        if _is_version_2():
            controllers = (MOUNT / "cgroup.controllers").read_text().split()
            (MOUNT / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in controllers))
            (MOUNT / name).mkdir()
            return
        for folder in _roots():
            (folder / name).mkdir()
        for file in _INHERITED:
            value = (MOUNT / "cpuset" / file).read_text()
            (MOUNT / "cpuset" / name / file).write_text(value)
    except OSError as error:
        raise MissingError(f"a real node needs control groups that root may write to: {error}") from error


def remove(name: str) -> None:
    """Remove a tree, whose processes have ended."""
    for root in [MOUNT] if _is_version_2() else [*_roots(), MOUNT / "unified"]:
        tree = sorted((root / name).glob("**/"), reverse=True)
        for folder in tree:
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()


def _is_version_2() -> bool:
    return (MOUNT / "cgroup.controllers").exists()


def _roots() -> list[Path]:
    return [MOUNT / name for name in HIERARCHIES if (MOUNT / name).is_dir()]
