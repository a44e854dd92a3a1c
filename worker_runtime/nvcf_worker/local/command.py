"""`nvcf-worker run`: serve a function by HTTP on this machine, and restart it when its source changes."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvcf_broker.process import stop_process
from nvcf_worker.errors import ConfigurationError, HandlerError, WorkerError
from nvcf_worker.function.handlers import classify, is_asgi
from nvcf_worker.process import children
from nvcf_worker.process.companions import Companion
from nvcf_worker.process.loops import run_to_end
from nvcf_worker.run.processes.channel import is_child
from nvcf_worker.serving import capture, has_served, set_up_logging

if TYPE_CHECKING:
    from nvcf_worker.local.function import LocalFunction

CHECK_INTERVAL = 0.3
END_GRACE = 5.0
DEFAULT_PORT = 8000
SKIPPED = frozenset(("__pycache__", "node_modules", "venv", "site-packages"))
MAX_FILES = 5000

Marks = dict[str, tuple[int, int]]


def parser() -> argparse.ArgumentParser:
    """Return the parser of `nvcf-worker run`."""
    result = argparse.ArgumentParser(
        prog="nvcf-worker run",
        description="Serve a handler by HTTP on this machine, with no platform: every path and method "
        "reaches it. For trying things, not for production.",
        epilog="Example: nvcf-worker run function.py --reload",
    )
    result.add_argument("target", metavar="FILE[:NAME]")
    result.add_argument("--port", type=int, default=DEFAULT_PORT, help="port to serve on; 0: any free port")
    result.add_argument("--host", default="127.0.0.1", help="address to serve on")
    result.add_argument("--reload", action="store_true", help="start again when a file of the folder changes")
    result.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    return result


def main(arguments: list[str]) -> None:
    """Run `nvcf-worker run`. Raises ConfigurationError."""
    options = parser().parse_args(arguments)
    if is_child():
        from nvcf_worker.__main__ import main as serve_as_worker

        # A process of isolation="process" serves the requests of the one that has the port.
        serve_as_worker([options.target])
        return
    set_up_logging(None)
    listener = (
        socket.socket(fileno=options.fd) if options.fd is not None else _listen(options.host, options.port)
    )
    address = "http://{}:{}".format(*listener.getsockname()[:2])
    if options.reload:
        from nvcf_worker.__main__ import split_target

        folder = Path(split_target(options.target)[0]).resolve().parent
        _say(f"loading {options.target} for {address}; it starts again when a file in {folder} changes")
        sys.exit(asyncio.run(_reloading(options.target, folder, listener)))
    if options.fd is None:
        _say(f"loading {options.target} for {address}")
    serve_file(options.target, listener)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(f"port {port} on {host} cannot be used: {reason}") from error
    listener.listen(128)
    return listener


def serve_file(target: str, listener: socket.socket) -> None:
    """Load a file as a worker does, and serve its function by HTTP. Raises ConfigurationError."""
    from nvcf_worker.__main__ import DEFAULT_NAME, find_handler, load, load_named, split_target

    file, name = split_target(target)
    path = Path(file).resolve()
    if not path.is_file():
        raise ConfigurationError(f"there is no file {file}")
    sys.path.insert(0, str(path.parent))
    handler: Any
    if name is None:
        taken: list[tuple[Any, dict[str, Any]]] = []
        capture(lambda handler, options: taken.append((handler, options)))
        module = load(path, "__main__")
        if not taken and has_served():
            return  # it was a task, and has run
        handler, options = taken[0] if taken else (find_handler(module, file, DEFAULT_NAME), {})
    else:
        handler, options = load_named(path, file, name)
    try:
        run_to_end(_serve(handler, options, listener))
    except HandlerError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    except WorkerError as error:
        _say(str(error))
        raise SystemExit(error.exit_code) from None


def _function(handler: Any, options: dict[str, Any]) -> LocalFunction:
    """Return the function that `serve(handler, **options)` describes. Raises HandlerError."""
    # Imported here, so that a wrong argument is reported without waiting for these imports.
    from nvcf_worker.function.time_limit import configured
    from nvcf_worker.local.function import LocalFunction
    from nvcf_worker.run.asgi.host import AsgiHost

    asgi = options.get("asgi")
    companion: Companion | None = None
    if asgi is not None or is_asgi(handler):
        host = AsgiHost(asgi if asgi is not None else handler)
        handler, companion = host.handle, host
    checked = classify(handler, options.get("media_type"))
    if options.get("isolation") == "process":
        from nvcf_worker.run.processes.setup import isolate

        retry = bool(options.get("retry_crashed", True))
        checked, companion, _ = isolate(
            checked, options.get("processes"), options.get("concurrency"), retry=retry
        )
    return LocalFunction(checked, companion, configured(options.get("time_limit"), os.environ))


async def _serve(handler: Any, options: dict[str, Any], listener: socket.socket) -> None:
    from nvcf_worker.local.http import LocalServer

    server = LocalServer(_function(handler, options), listener)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        await server.start()
        _say("ready")
        await stopped.wait()
    finally:
        await server.stop()


async def _reloading(target: str, folder: Path, listener: socket.socket) -> int:
    """Run the function in a child. The socket belongs to this process, so requests wait during a restart."""
    listener.set_inheritable(True)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    seen = await asyncio.to_thread(marks, folder)
    fd = listener.fileno()
    command = [sys.executable, "-m", "nvcf_worker", "run", target, "--fd", str(fd)]
    while not stopped.is_set():
        child = await children.spawn(command, os.environ, pass_fds=(fd,))
        try:
            seen = await _until_changed(folder, seen, stopped)
        finally:
            await stop_process(child, END_GRACE)
    return 0


async def _until_changed(folder: Path, seen: Marks, stopped: asyncio.Event) -> Marks:
    while True:
        try:
            async with asyncio.timeout(CHECK_INTERVAL):
                await stopped.wait()
            return seen
        except TimeoutError:
            now = await asyncio.to_thread(marks, folder)
        if names := changed(seen, now):
            shown = ", ".join(name.removeprefix(f"{folder}/") for name in names[:3])
            _say(f"{shown} changed; starting again")
            return now


def _say(text: str) -> None:
    print(f"nvcf-worker: {text}", file=sys.stderr, flush=True)  # noqa: T201 - output of a command


def marks(folder: Path) -> Marks:
    """Return modification time (ns) and size of each Python file below `folder`, by path."""
    found: Marks = {}
    for path in _sources(folder):
        try:
            status = os.stat(path)
        except OSError:  # removed since it was listed
            continue
        found[path] = (status.st_mtime_ns, status.st_size)
        if len(found) >= MAX_FILES:
            break
    return found


def _sources(folder: Path) -> Iterator[str]:
    for directory, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if name not in SKIPPED and not name.startswith("."))
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith("."):
                yield os.path.join(directory, name)


def changed(before: Marks, after: Marks) -> list[str]:
    """Return the paths that are new, gone or different, sorted."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
