"""1 KiB JSON echo against other servers: requests per CPU second, as ratios of one run.

Theirs is a server and a handler; ours lies behind a gateway and a durable queue. "worker path" counts our
worker process alone, "end to end" gateway, broker and worker together. Each peer is installed into a virtual
environment of its own below the system's temporary folder, kept for the next run; one that cannot be
installed or started is left out with a line that says so. Not part of the default run: it takes minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from nvcf_broker.process import free_port
from tests.bench.peer_servers import PEERS, Peer
from tests.support.platform.gateways import running_platform
from tests.support.platform.processes import Child, end, start

FUNCTIONS = Path(__file__).parent.parent / "functions"
VENVS = Path(tempfile.gettempdir()) / "nvcf-bench-peers"
BODY = json.dumps({"data": "x" * 1010}).encode()
CONCURRENCIES = (1, 16, 64)
SECONDS = 4.0
INSTALL_SECONDS = 600.0
START_SECONDS = 60.0


class Unavailable(Exception):
    """A peer cannot be measured here. The text has the cause."""


@dataclass(frozen=True)
class Measured:
    """Requests per second, and per CPU second of the server's processes."""

    per_second: float
    per_cpu_second: float


def _cpu(roots: Sequence[int]) -> float:
    """Return the CPU seconds of these processes and all their descendants so far."""
    total = 0.0
    for root in roots:
        try:
            family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in family:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
    return total


async def _load(url: str, headers: Mapping[str, str], concurrency: int, seconds: float) -> int:
    count, until = 0, time.perf_counter() + seconds
    sent = {"Content-Type": "application/json", **headers}

    async def caller(session: aiohttp.ClientSession) -> None:
        nonlocal count
        while time.perf_counter() < until:
            async with session.post(url, data=BODY, headers=sent) as response:
                body = await response.read()
            if response.status != 200 or json.loads(body) != json.loads(BODY):
                raise Unavailable(f"answered {response.status} {body[:200]!r}")
            count += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(caller(session))
    return count


async def _measure(
    url: str, headers: Mapping[str, str], views: Mapping[str, Sequence[int]]
) -> dict[str, dict[int, Measured]]:
    """Measure each named set of processes by number of callers."""
    await _load(url, headers, 8, 1.0)
    found: dict[str, dict[int, Measured]] = {name: {} for name in views}
    for concurrency in CONCURRENCIES:
        before = {name: _cpu(roots) for name, roots in views.items()}
        began = time.perf_counter()
        count = await _load(url, headers, concurrency, SECONDS)
        elapsed = time.perf_counter() - began
        for name, roots in views.items():
            found[name][concurrency] = Measured(count / elapsed, count / (_cpu(roots) - before[name]))
    return found


async def _ours(folder: Path) -> dict[str, dict[int, Measured]]:
    async with running_platform(folder) as platform:
        version = await platform.deployed_version()
        worker = await platform.start_worker(version, FUNCTIONS / "echo.py", "echo_json", concurrency=64)
        broker = platform.broker.pid
        if broker is None:
            raise Unavailable("the broker has no process")
        views = {
            "worker path": [worker.pid],
            "end to end": [platform.gateway.child.pid, broker, worker.pid],
        }
        return await _measure(platform.gateway.url + version.pexec, platform.authorization(), views)


async def python_of(peer: Peer, *, afresh: bool = False) -> Path:
    """Return a Python with the peer installed, with `afresh` in a new environment. Raises Unavailable."""
    first = peer.packages[0].partition(">")[0].partition("[")[0].partition(" ")[0]
    home = VENVS / f"{first}-{sys.version_info.minor}"
    python, mark = home / "bin" / "python", home / "installed"
    if mark.exists() and not afresh:
        return python
    print(f"installing {', '.join(peer.packages)} into {home}", flush=True)
    await asyncio.to_thread(venv.create, home, clear=True, with_pip=True)
    words = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages)
    install = await asyncio.create_subprocess_exec(
        str(python), *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(INSTALL_SECONDS):
            _, errors = await install.communicate()
    except TimeoutError:
        install.kill()
        await install.wait()
        raise Unavailable(f"not installed within {INSTALL_SECONDS:g} s") from None
    if install.returncode:
        last = errors.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise Unavailable(f"cannot be installed: {last[-1]}")
    mark.touch()
    return python


async def _until_served(url: str, child: Child) -> None:
    deadline = time.monotonic() + START_SECONDS
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while time.monotonic() < deadline and child.running:
            try:
                headers = {"Content-Type": "application/json"}
                async with session.post(url, data=BODY, headers=headers) as response:
                    if response.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.2)
    raise Unavailable(f"does not serve: {child.text()[-300:]!r}")


async def _theirs(peer: Peer, folder: Path) -> dict[int, Measured]:
    python = await python_of(peer)
    (folder / "peer.py").write_text(peer.program)
    port = free_port()
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(folder), "DO_NOT_TRACK": "1"}
    environment |= {"BENTOML_DO_NOT_TRACK": "true", "RAY_USAGE_STATS_ENABLED": "0"}
    # None of the others logs each request.
    environment["BENTOML_CONFIG_OPTIONS"] = "services.default.logging.access.enabled=false"
    child = await start(
        # Its standard output goes nowhere: nobody reads the pipe, and a full one would stop it.
        ["/bin/sh", "-c", 'exec "$@" >/dev/null', "sh", str(python), str(folder / "peer.py"), str(port)],
        log=folder / "log",
        environment=environment,
        cwd=folder,
    )
    family: set[psutil.Process] = set()
    try:
        url = f"http://127.0.0.1:{port}{peer.path}"
        await _until_served(url, child)
        family |= set(psutil.Process(child.pid).children(recursive=True))
        return (await _measure(url, {}, {"all": [child.pid]}))["all"]
    except* Unavailable as errors:
        raise errors.exceptions[0] from None
    finally:
        # First those below it: they hold its standard output, which `end` waits for.
        if child.running:
            family |= set(psutil.Process(child.pid).children(recursive=True))
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await end(child)


def _line(name: str, found: Mapping[int, Measured]) -> str:
    cells = "".join(f"{one.per_second:>9.0f}{one.per_cpu_second:>9.0f}" for one in found.values())
    return f"{name:<12}{cells}"


def ratios(ours: Mapping[int, Measured], theirs: Mapping[str, Mapping[int, Measured]]) -> dict[int, float]:
    """Return our requests per CPU second over the best peer, by number of callers."""
    return {
        callers: one.per_cpu_second / max(peer[callers].per_cpu_second for peer in theirs.values())
        for callers, one in ours.items()
    }


async def run() -> None:
    """Measure our worker, then each peer. Print results and ratios."""
    with tempfile.TemporaryDirectory() as base:
        found = await _ours(_made(Path(base) / "ours"))
        theirs: dict[str, dict[int, Measured]] = {}
        for peer in PEERS:
            try:
                theirs[peer.name] = await _theirs(peer, _made(Path(base) / peer.name.replace(" ", "-")))
            except Unavailable as error:
                print(f"{peer.name} is left out: {error}", flush=True)
    header = "".join(f"{f'c={callers} req/s':>10}{'/CPU s':>8}" for callers in CONCURRENCIES)
    print(f"{'':<12}{header}")
    for name, figures in {**found, **theirs}.items():
        print(_line(name, figures))
    if theirs:
        for name, figures in found.items():
            shares = "  ".join(
                f"c={callers} {ratio:.2f}" for callers, ratio in ratios(figures, theirs).items()
            )
            print(f"{name} over the best peer, per CPU second: {shares}")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
