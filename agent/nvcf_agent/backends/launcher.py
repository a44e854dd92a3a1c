"""First program of an instance with a user of its own, run as root: build its view, give up root, exec.

It runs as a script with an empty environment, because a function's variables (LD_PRELOAD, PYTHONPATH) must
never reach a program of root. The plan comes as JSON on the socket that is its standard input. On failure the
reason goes back on it; on success exec closes it. `isolation.py` is the other end.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

_CLONE_NEWNS = 0x20000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_EMPTY_FOLDER = b"mode=755,size=4m,nr_inodes=16k"
FAILED = 125

_libc = ctypes.CDLL(None, use_errno=True)


class FunctionError(Exception):
    """What the instance's user cannot do; the function's author or the operator can change it."""


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: bytes | None = None) -> None:
    texts = [None if each is None else os.fsencode(each) for each in (source, target, kind)]
    _check(_libc.mount(*texts, ctypes.c_ulong(flags), data), f"mount {target}")


def enter_namespace() -> None:
    """Give this process mounts of its own, of which nobody else sees a change."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)


def build_view(steps: list[tuple[str, str, str]]) -> None:
    """Cover folders and bind paths into them. `steps` are (kind, path, target of a link), parents first."""
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for kind, path, _ in steps if kind == "bind"}
    for path, descriptor in sources.items():
        # A path that has become a link since it was checked leads elsewhere.
        if os.readlink(f"/proc/self/fd/{descriptor}") != path:
            raise FunctionError(f"{path} was replaced during the start")
    for kind, path, target in steps:
        if kind == "cover":
            _mount("nvcf", path, "tmpfs", _MS_NOSUID | _MS_NODEV, _EMPTY_FOLDER)
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == "link":
            os.symlink(target, path)
            continue
        source = f"/proc/self/fd/{sources[path]}"
        if os.path.isdir(source):
            os.makedirs(path, exist_ok=True)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        _mount(source, path, None, _MS_BIND | _MS_REC)
    for descriptor in sources.values():
        os.close(descriptor)


def become(uid: int, parent: int) -> None:
    """Become a user without groups, capabilities or a way to get any; end with the parent."""
    for descriptor in (1, 2):
        os.fchown(descriptor, uid, uid)  # so that the function can open /dev/stdout
    os.umask(0o022)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    # The change of user has cleared it.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(FAILED)


def run(plan: dict[str, Any]) -> None:
    """Become the instance. Returns only by an exception: OSError or FunctionError."""
    enter_namespace()
    build_view(plan["steps"])
    become(plan["uid"], plan["parent"])
    command = plan["command"]
    try:
        os.chdir(plan["folder"])
        # A folder is a model repository.
        os.close(os.open(plan["file"], os.O_RDONLY | os.O_CLOEXEC))
        os.execve(command[0], command, plan["environment"])  # noqa: S606 - the worker's command line
    except OSError as error:
        what = error.filename or command[0]
        raise FunctionError(
            f"the instance's user ({plan['uid']}) cannot use {what}: {error.strerror}"
        ) from error


def main() -> None:
    """Run the plan, or with `--probe UID` only find out whether this machine allows it."""
    if sys.argv[1:2] == ["--probe"]:
        enter_namespace()
        _mount("nvcf", "/proc", "tmpfs", 0, _EMPTY_FOLDER)
        become(int(sys.argv[2]), os.getppid())
        return
    channel = os.dup(0)  # not inherited, so exec closes it
    text = b""
    while chunk := os.read(channel, 65536):
        text += chunk
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    try:
        run(json.loads(text))
    except (OSError, FunctionError) as error:
        kind = "function" if isinstance(error, FunctionError) else "machine"
        os.write(channel, json.dumps({"kind": kind, "text": str(error)}).encode())
        os._exit(FAILED)


if __name__ == "__main__":
    main()
