"""Child processes of a worker; none outlives it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nvcf_proto.environment import NKEY_SEED, NVCF_WORKER_TOKEN, SECRETS_ASSERTION_TOKEN
from nvcf_worker.errors import ConfigurationError

CREDENTIALS = (NVCF_WORKER_TOKEN, NKEY_SEED, SECRETS_ASSERTION_TOKEN)
"""What a child never gets to see: they speak for the worker, not for the function."""

_LAUNCH = str(Path(__file__).with_name("isolation") / "launch.py")


async def spawn(
    command: Sequence[str], environment: Mapping[str, str], *, pass_fds: Sequence[int] = ()
) -> asyncio.subprocess.Process:
    """Start a child as leader of a process group of its own, so that ctrl-C reaches it only through us.

    It writes where the worker writes, does not see CREDENTIALS, and on Linux is killed with the thread that
    called this. Raises ConfigurationError when it cannot be started.
    """
    program = _program(command[0], environment)
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", _LAUNCH, str(os.getpid()), program, *command[1:]),
            env={name: value for name, value in environment.items() if name not in CREDENTIALS},
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigurationError(f"cannot start {command[0]}: {reason}") from error


def _program(name: str, environment: Mapping[str, str]) -> str:
    found = shutil.which(name, path=environment.get("PATH"))
    if found is None:
        raise ConfigurationError(f"cannot start {name}: there is no such program")
    return os.path.abspath(found)
