"""Instances with a user of their own: starts them through the launcher, where the agent is root."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvcf_agent.backends.allowed import Allowed
from nvcf_agent.backends.users import DEFAULT_RANGE, InstanceUsers
from nvcf_agent.backends.view import (
    Step,
    interpreter_folders,
    is_closed,
    resolve_links,
    view,
    visible_entries,
)
from nvcf_agent.errors import LaunchError, StartError
from nvcf_broker.files import private_directory
from nvcf_broker.process import spawn, stop_process
from nvcf_proto.models import ProcessSource

_LAUNCHER = str(Path(__file__).with_name("launcher.py"))
# Nothing of a function's environment may reach a program of root.
_COMMAND = (sys.executable, "-I", "-S", _LAUNCHER)
_PROBE_SECONDS = 10.0
_START_SECONDS = 30.0


def why_not_isolated() -> str | None:
    """Return why this process cannot give instances users of their own; None if it can. Blocking."""
    if sys.platform != "linux":
        return "only Linux can"
    if os.geteuid() != 0:
        return "only root can"
    try:
        probe = subprocess.run(
            [*_COMMAND, "--probe", str(DEFAULT_RANGE.first)],
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if probe.returncode == 0:
        return None
    last = probe.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return f"this root lacks CAP_SYS_ADMIN or the user numbers ({''.join(last)})"


@dataclass(frozen=True)
class InstanceUser:
    """The user of an instance, its home, and its folder for temporary files."""

    uid: int
    home: Path
    temporary: Path

    def variables(self) -> dict[str, str]:
        """Return the environment variables that depend on the user."""
        return {"HOME": str(self.home), "TMPDIR": str(self.temporary)}


class Isolation:
    """Starts instances under users of their own. `data` is the agent's folder."""

    def __init__(self, data: Path, users: InstanceUsers, allowed: Allowed) -> None:
        self._homes = data / "homes"
        self._users = users
        self._allowed = allowed

    def prepare(self, account: str, folder: Path, own: Sequence[Path]) -> InstanceUser:
        """Give the folders `own` of an instance's `folder` to its account's user. Blocking.

        The folder itself stays the agent's, so that nothing in it can be replaced. Raises `StartError`,
        `Refused` and OSError.
        """
        uid = self._users.uid(account)
        private_directory(self._homes)
        user = InstanceUser(uid, self._homes / str(uid), folder / "tmp")
        folder.chmod(0o711)
        for path in (*own, user.temporary, user.home):
            private_directory(path)
            shutil.chown(path, uid, uid)
        return user

    def steps(self, source: ProcessSource, folder: Path, user: InstanceUser) -> list[Step]:
        """Return the view of an instance. Blocking: looks at folders."""
        python = Path(source.python)
        reads = interpreter_folders(Path(sys.executable))
        found = interpreter_folders(python)
        if not self._allowed.is_named(python):
            found = [path for path in found if self._allowed.has_folder(Path(os.path.realpath(path)))]
        working, file = Path(source.working_directory), Path(source.file)
        links: dict[Path, str] = {}
        needed: set[Path] = set()
        for path in (*reads, *found, python, file, folder, user.home):
            real, there = resolve_links(path)
            needed.add(real)
            links |= there
        opened, there = resolve_links(working)
        links |= there
        folders = {opened, Path(os.path.realpath(file.parent))}
        for each in folders:
            if each.is_dir() and is_closed(each):
                needed.update(visible_entries(each))
        return view(
            {each for each in needed if each.exists()}, folders, links, is_closed, self._allowed.private
        )

    async def spawn(
        self,
        prefix: Sequence[str],
        command: Sequence[str],
        environment: Mapping[str, str],
        source: ProcessSource,
        folder: Path,
        user: InstanceUser,
    ) -> asyncio.subprocess.Process:
        """Start an instance. `prefix` is run as root before the launcher, to enter a control group.

        Raises `LaunchError` (its user cannot run it), `StartError` (the machine cannot) and `ProcessError`.
        """
        steps = await asyncio.to_thread(self.steps, source, folder, user)
        plan = {
            "uid": user.uid,
            "parent": os.getpid(),
            "steps": [(step.kind, str(step.path), step.target) for step in steps],
            "command": list(command),
            "environment": dict(environment),
            "folder": source.working_directory,
            "file": source.file,
        }
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = await spawn(
                    [*prefix, *_COMMAND],
                    env={},
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    new_session=True,  # a shared terminal would let it type into root's shell
                )
            try:
                answer = await _exchange(ours, json.dumps(plan).encode())
                if answer:
                    failed = json.loads(answer)
                    error = LaunchError if failed["kind"] == "function" else StartError
                    raise error(f"cannot start {source.python}: {failed['text']}")
            except (OSError, ValueError) as error:
                await stop_process(process, 0)
                raise StartError(f"cannot start {source.python}: {error or 'the launcher hangs'}") from error
            except BaseException:
                await stop_process(process, 0)
                raise
        return process


async def _exchange(channel: socket.socket, text: bytes) -> bytes:
    """Send the plan, and return the launcher's answer: nothing once the instance runs."""
    channel.setblocking(False)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_START_SECONDS):
        await loop.sock_sendall(channel, text)
        channel.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := await loop.sock_recv(channel, 65536):
            answer += chunk
    return answer
