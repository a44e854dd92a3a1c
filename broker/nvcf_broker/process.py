"""Child processes that never outlive their parent, and the policy of their restarts.

Shared by the local broker, the process agent and `nvcf up`.
"""

import asyncio
import contextlib
import ctypes
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from nvcf_broker.errors import ProcessError

if TYPE_CHECKING:
    Stream = int | IO[bytes] | None

_PR_SET_PDEATHSIG = 1
_PORTS = range(16384, 32768)
_PORT_ATTEMPTS = 100
# Loaded before any fork: between fork and exec nothing may be imported or allocated by the loader.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _die_with_parent(parent: int, death_signal: int) -> Callable[[], None] | None:
    libc = _LIBC
    if libc is None:
        return None

    def before_exec() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        # The parent may have died between fork and prctl; then no signal would ever come.
        if os.getppid() != parent:
            os._exit(125)

    return before_exec


async def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: "Stream" = asyncio.subprocess.DEVNULL,
    stdout: "Stream" = None,
    stderr: "Stream" = None,
    death_signal: int = signal.SIGKILL,
    new_session: bool = False,
) -> asyncio.subprocess.Process:
    """Start a child as leader of its own process group, with `new_session` also of a session: no terminal.

    On Linux the kernel sends it `death_signal` when the calling thread ends, so call this from a thread that
    lives as long as the process (the main one). Raises `ProcessError` if it cannot be started.
    """
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            process_group=None if new_session else 0,
            start_new_session=new_session,
            preexec_fn=_die_with_parent(os.getpid(), death_signal),
        )
    except (OSError, ValueError) as error:
        where = f" in {cwd}" if cwd is not None else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ProcessError(f"cannot start {command[0]}{where}: {reason}") from error


def signal_group(group: int, number: int) -> bool:
    """Send a signal to every process of a group. Return False if none is left."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        # macOS raises this for a group of zombies.
        return False
    return True


_EXIT_CHECK_SECONDS = 0.2


async def stop_process(process: asyncio.subprocess.Process, grace: float) -> int:
    """Send SIGTERM, wait `grace` seconds, then SIGKILL the whole group. Return the exit code.

    The group is killed in any case, so that no process which the child started remains.
    """
    try:
        if process.returncode is None:
            # Only the leader gets it: the leader ends its own children in order.
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await wait_exit(process)
    finally:
        signal_group(process.pid, signal.SIGKILL)
    return await wait_exit(process)


async def wait_exit(process: asyncio.subprocess.Process) -> int:
    """Return the exit code of a process when it has ended.

    `process.wait()` also waits until its pipes are closed, which others may hold: what it has started in a
    session of its own.
    """
    waiting = asyncio.ensure_future(process.wait())
    try:
        while process.returncode is None:
            await asyncio.wait({waiting}, timeout=_EXIT_CHECK_SECONDS)
        return process.returncode
    finally:
        waiting.cancel()


def describe_exit(code: int) -> str:
    """Return an exit code of `asyncio` in words: `exit code 3`, `killed by SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that was free a moment ago. Another process may take it first.

    It lies below the range of ports for outgoing connections: such a connection could occupy a port that a
    server needs again after a restart.
    """
    for _ in range(_PORT_ATTEMPTS):
        port = _PORTS.start + secrets.randbelow(len(_PORTS))
        if port_is_free(port, host):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on this TCP port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


@dataclass(frozen=True)
class RestartPolicy:
    """When to restart a process that ended. All times are in seconds.

    The first restart is immediate, the following ones after `initial`, `initial * factor`, ... up to
    `maximum`. A process that ran for `stable_after` counts as healthy and starts again from the beginning.
    """

    initial: float = 0.5
    factor: float = 2.0
    maximum: float = 30.0
    stable_after: float = 30.0

    def delay(self, failures: int) -> float:
        """Return the seconds before the restart after the `failures`-th failure in a row (from 1)."""
        if failures <= 1:
            return 0.0
        # The exponent is bounded so that years of failures do not overflow a float.
        return min(self.maximum, self.initial * self.factor ** min(failures - 2, 64))

    def failures_after(self, failures: int, ran_for: float) -> int:
        """Return the number of failures in a row after one more exit, `ran_for` seconds after the start."""
        return 1 if ran_for >= self.stable_after else failures + 1
