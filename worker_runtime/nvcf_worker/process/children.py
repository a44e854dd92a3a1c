"""Start child processes of a worker that never outlive it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nvcf_proto.environment import NKEY_SEED, NVCF_WORKER_TOKEN, SECRETS_ASSERTION_TOKEN
from nvcf_worker.errors import ConfigurationError

CREDENTIALS = (NVCF_WORKER_TOKEN, NKEY_SEED, SECRETS_ASSERTION_TOKEN)
"""Variables that a child never gets: they authenticate the worker, not the function."""

_PR_SET_DUMPABLE = 4
_LAUNCHER = str(Path(__file__).with_name("launch.py"))


async def spawn(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    pass_fds: Sequence[int] = (),
    piped: bool = False,
    longest_line: int = 64 * 1024,
) -> asyncio.subprocess.Process:
    """Start a child as the leader of its own session, so that Ctrl-C reaches only the worker.

    The child does not see CREDENTIALS. It writes to the worker's stdout and stderr, or with `piped` both to
    the process' `stdout`, in lines of up to `longest_line` bytes. On Linux the kernel kills it when the
    calling thread ends. Raises ConfigurationError if it cannot be started.
    """
    hide_memory()
    program = _find(command[0], environment)
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid()), program, *command[1:]),
            env={name: value for name, value in environment.items() if name not in CREDENTIALS},
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=pass_fds,
            limit=longest_line,
            stdout=asyncio.subprocess.PIPE if piped else None,
            stderr=asyncio.subprocess.STDOUT if piped else None,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigurationError(f"cannot start {command[0]}: {reason}") from error


def hide_memory() -> None:
    """Keep processes of the same user out of this one's memory and environment (/proc, ptrace).

    The environment that a process was started with has the worker token. Root can read it nevertheless.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _find(name: str, environment: Mapping[str, str]) -> str:
    found = shutil.which(name, path=environment.get("PATH"))
    if found is None:
        # An instance may have a user of its own, which sees less than the one that looks for the reason.
        raise ConfigurationError(
            f"cannot start {name}: no such program on PATH that user {os.getuid()} can read;"
            " install it for that user, or name it by a whole path that the user can read"
        )
    return os.path.abspath(found)
