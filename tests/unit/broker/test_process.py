"""Restart policy and children."""

import asyncio
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_broker.connection import RECONNECT_LONGEST_SECONDS, display_address, reconnect_delay
from nvcf_broker.errors import ProcessError
from nvcf_broker.files import private_directory, write_private
from nvcf_broker.process import RestartPolicy, describe_exit, free_port, port_is_free, spawn, stop_process


def test_the_first_restart_comes_at_once_and_the_next_ones_later_and_later() -> None:
    policy = RestartPolicy(initial=1, factor=2, maximum=30, stable_after=10)
    assert [policy.delay(failures) for failures in range(1, 9)] == [0, 1, 2, 4, 8, 16, 30, 30]
    assert policy.failures_after(5, ran_for=9.9) == 6
    assert policy.failures_after(5, ran_for=10) == 1
    assert policy.failures_after(0, ran_for=0) == 1


@given(st.integers(0, 10_000))
def test_delays_are_bounded_and_never_shrink(failures: int) -> None:
    policy = RestartPolicy()
    assert 0 <= policy.delay(failures) <= policy.delay(failures + 1) <= policy.maximum


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_reconnect_delays_are_bounded(attempt: int, chance: float) -> None:
    assert 0 < reconnect_delay(attempt, chance) <= RECONNECT_LONGEST_SECONDS


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://user:secret@host:4222", "nats://host:4222"),
        ("tls://token@host", "tls://host"),
        ("nats://host:port", "(malformed URL)"),
        ("nonsense", "nats://?"),
    ],
)
def test_addresses_are_shown_without_secrets(url: str, shown: str) -> None:
    assert display_address(url) == shown


def test_exit_codes_in_words() -> None:
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-99) == "killed by signal 99"


async def test_a_command_that_does_not_exist_is_named() -> None:
    with pytest.raises(ProcessError, match="cannot start /does/not/exist: No such file"):
        await spawn(["/does/not/exist"])


async def test_a_child_gets_its_own_group_and_is_asked_before_it_is_killed() -> None:
    script = (
        "import signal,sys,time\nsignal.signal(15,lambda *_:sys.exit(7))\n"
        "print('up',flush=True)\nwhile True: time.sleep(0.05)"
    )
    child = await spawn([sys.executable, "-c", script], stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    await asyncio.wait_for(child.stdout.readline(), 20)
    assert os.getpgid(child.pid) == child.pid
    assert await stop_process(child, grace=20) == 7


async def test_a_stubborn_child_is_killed_with_what_it_started() -> None:
    script = (
        "import signal,subprocess,sys,time\nsignal.signal(15,signal.SIG_IGN)\n"
        "p=subprocess.Popen([sys.executable,'-c','import time;time.sleep(600)'])\n"
        "print(p.pid,flush=True)\ntime.sleep(600)"
    )
    child = await spawn([sys.executable, "-c", script], stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    grandchild = int(await asyncio.wait_for(child.stdout.readline(), 20))
    assert await stop_process(child, grace=0.2) == -signal.SIGKILL
    async with asyncio.timeout(20):
        while _alive(grandchild):
            await asyncio.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_free_ports_are_free() -> None:
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 10
    assert all(port_is_free(port) for port in ports)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not port_is_free(taken.getsockname()[1])


def test_private_files(tmp_path: Path) -> None:
    folder = private_directory(tmp_path / "a" / "b")
    write_private(folder / "secret", "one")
    write_private(folder / "secret", "two")
    assert (folder / "secret").read_text() == "two"
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == ["secret"]
