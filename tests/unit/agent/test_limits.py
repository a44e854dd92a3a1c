"""Control groups and how a process ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nvcf_agent.backends.cgroups import (
    Group,
    Groups,
    LimitsUnavailable,
    describe_end,
    limit_files,
    oom_kills,
    own_group,
)
from nvcf_agent.state.inventory import Limits
from nvcf_agent.state.managed_instance import Category

MOUNTS = """24 1 0:22 / /sys rw,nosuid - sysfs sysfs rw
31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
"""


def test_what_is_written_for_which_limits() -> None:
    assert limit_files(Limits()) == {}
    assert limit_files(Limits(memory=2**29)) == {
        "memory.max": str(2**29),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
    }
    assert limit_files(Limits(cpus=0.25)) == {"cpu.max": "25000 100000"}


def test_where_the_own_group_is() -> None:
    assert own_group(MOUNTS, "0::/user.slice/a.scope\n") == Path("/sys/fs/cgroup/user.slice/a.scope")
    assert own_group(MOUNTS, "4:memory:/a\n0::/\n") == Path("/sys/fs/cgroup")
    assert own_group("24 1 0:22 / /sys rw - sysfs sysfs rw\n", "0::/\n") is None
    assert own_group(MOUNTS, "4:memory:/a\n") is None


def test_kills_are_counted() -> None:
    assert oom_kills("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 1\n") == 1
    assert oom_kills("") == 0


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with plain files in place of a control group."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    return tmp_path


def test_controllers_are_asked_for_and_limits_written(tree: Path) -> None:
    with pytest.raises(LimitsUnavailable, match="--cgroup"):
        # A plain folder gives its children no control files, as a group without delegation would not.
        Groups.open(Path("/data"), tree)
    assert (tree / "cgroup.subtree_control").read_text() == "+memory"
    groups = Groups(tree)
    instance = tree / "i"
    instance.mkdir()
    for name in ("memory.max", "cpu.max"):
        (instance / name).write_text("max")
    group = groups.make("i", Limits(memory=1024, cpus=2))
    assert (instance / "memory.max").read_text() == "1024"
    assert (instance / "cpu.max").read_text() == "200000 100000"
    assert group.oom_kills() == 0


def test_missing_controllers_are_named(tree: Path) -> None:
    (tree / "cgroup.controllers").write_text("cpuset cpu pids\n")
    with pytest.raises(LimitsUnavailable, match="the controllers memory are not available"):
        Groups.open(Path("/data"), tree)
    with pytest.raises(LimitsUnavailable, match="No such file"):
        Groups.open(Path("/data"), tree / "missing")


def test_a_program_enters_its_group_before_it_is_itself(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("")
    command = Group(tmp_path).command([sys.executable, "-c", "import os; print(os.getpid())", "it's"])
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out, _ = child.communicate(timeout=30)
    assert int(out) == child.pid
    assert (tmp_path / "cgroup.procs").read_text() == "0\n"
    nowhere = Group(tmp_path / "missing").command([sys.executable, "-c", "print('ran')"])
    failed = subprocess.run(nowhere, capture_output=True, text=True, timeout=30, check=False)
    assert (failed.returncode != 0, failed.stdout) == (True, "")


def _usable() -> bool:
    try:
        Groups.open(Path(f"/probe-{os.getpid()}"))._home.rmdir()
    except (LimitsUnavailable, OSError):
        return False
    return True


@pytest.mark.skipif(
    not _usable(), reason="control groups (version 2) with memory and cpu are not usable here"
)
def test_the_kernel_enforces_a_memory_limit() -> None:
    groups = Groups.open(Path(f"/test-{os.getpid()}"))
    group = groups.make("i", Limits(memory=32 * 2**20))
    hungry = group.command([sys.executable, "-c", "x = bytearray(256 * 2**20)"])
    ended = subprocess.run(hungry, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert group.oom_kills() > 0
    group.remove()
    assert not group.path.exists()
    groups._home.rmdir()


@pytest.mark.parametrize(
    ("code", "terminating", "group", "machine", "category", "words"),
    [
        (1, False, 0, 0, Category.CRASH, "exit code 1"),
        (0, False, 0, 3, Category.CRASH, "exit code 0"),
        (-11, False, 0, 0, Category.CRASH, "killed by SIGSEGV"),
        (-9, False, 0, 0, Category.CRASH, "killed by SIGKILL"),
        (
            -9,
            False,
            1,
            1,
            Category.OUT_OF_MEMORY,
            "out of memory: it reached its limit of 64 MiB (killed by SIGKILL)",
        ),
        (
            1,
            False,
            1,
            1,
            Category.OUT_OF_MEMORY,
            "out of memory: it reached its limit of 64 MiB (exit code 1)",
        ),
        (
            -9,
            False,
            0,
            2,
            Category.OUT_OF_MEMORY,
            "out of memory: the machine had none left (killed by SIGKILL)",
        ),
        (-9, True, 0, 2, Category.CRASH, "killed by SIGKILL"),
    ],
)
def test_how_a_process_ended(
    code: int, terminating: bool, group: int, machine: int, category: Category, words: str
) -> None:
    found = describe_end(
        code, terminating=terminating, limit=64 * 2**20, group_oom_kills=group, machine_oom_kills=machine
    )
    assert found == (category, words)
