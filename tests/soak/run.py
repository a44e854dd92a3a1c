"""Make keyed calls, delete functions and keys, and compare every store and process with the beginning."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
from nats.aio.client import Client

from nvcf_broker.configuration import read_credentials
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.waiting import eventually

FUNCTIONS = Path(__file__).parents[1] / "functions"
BODY = b'{"data": "' + b"x" * 500 + b'"}'
ANSWER_LIFE = 60
FLAGS = ("--quota", "kept-answers=10000000", "--quota", "kept-bytes=100000000000")


@dataclass
class Snapshot:
    """Messages and bytes of each stream, resident MiB and descriptors of each process."""

    streams: dict[str, tuple[int, int]] = field(default_factory=dict)
    processes: dict[str, tuple[float, int]] = field(default_factory=dict)


async def snapshot(clients: Sequence[Client], processes: Mapping[str, int]) -> Snapshot:
    """Look at everything in the broker accounts of `clients`, and at the processes."""
    found = Snapshot()
    for client in clients:
        offset, total = 0, 1
        while offset < total:
            query = json.dumps({"offset": offset}).encode()
            page = json.loads((await client.request("$JS.API.STREAM.LIST", query, timeout=30)).data)
            total = int(page["total"])
            for stream in page.get("streams") or ():
                name, state = str(stream["config"]["name"]), stream["state"]
                name = "rq_R_V (all)" if name.startswith("rq_") else name
                messages, size = found.streams.get(name, (0, 0))
                found.streams[name] = (messages + int(state["messages"]), size + int(state["bytes"]))
            offset += max(1, len(page.get("streams") or ()))
    for name, pid in processes.items():
        process = psutil.Process(pid)
        found.processes[name] = (process.memory_info().rss / 2**20, process.num_fds())
    return found


@dataclass
class Report:
    """What a run saw: before, at the end of the calls, and after all that was made has been deleted."""

    calls: int
    failed: int
    seconds: float
    before: Snapshot
    top: Snapshot
    after: Snapshot

    def table(self) -> str:
        """Return it as text."""
        moments = (self.before, self.top, self.after)
        lines = [
            f"{self.calls} keyed calls in {self.seconds:.0f} s, {self.failed} without an answer",
            f"{'':34}{'before':>22}{'top':>22}{'after':>22}",
        ]
        for name in sorted({name for each in moments for name in each.streams}):
            cells = [each.streams.get(name) for each in moments]
            texts = ["-" if cell is None else f"{cell[0]:,} / {cell[1] / 1024:,.0f} KiB" for cell in cells]
            lines.append(f"{name:34}" + "".join(f"{text:>22}" for text in texts))
        for name in self.before.processes:
            figures = [each.processes.get(name) for each in moments]
            texts = ["-" if each is None else f"{each[0]:,.0f} MiB / {each[1]} fd" for each in figures]
            lines.append(f"{name:34}" + "".join(f"{text:>22}" for text in texts))
        return "\n".join(lines)


async def run(
    directory: Path,
    calls: int,
    *,
    functions: int = 4,
    keys: int = 10,
    callers: int = 32,
    life: int = ANSWER_LIFE,
) -> Report:
    """Make `calls` calls to some functions with some keys; both are deleted at the end.

    `life` is how long answers are kept, seconds.
    """
    flags = ("--results-ttl", str(life), *FLAGS)
    async with running_platform(directory, flags=flags) as platform:
        data = await platform.broker_client()
        control = await _control_client(platform)
        clients = (data, control)
        broker, gateway = platform.broker.pid, platform.gateway.child.pid
        assert broker is not None
        processes = {"broker": broker, "gateway": gateway}
        versions = [await platform.deployed_version(f"soak-{number}") for number in range(functions)]
        for number, version in enumerate(versions):
            worker = await platform.start_worker(version, FUNCTIONS / "echo.py", "echo", concurrency=16)
            processes[f"worker {number}"] = worker.pid
        await _calls(platform, versions, [platform.keys["admin"]], 200, callers)
        await eventually(lambda: _nothing_kept(data), "the first answers expire", 60 + 2.0 * life)
        before = await snapshot(clients, processes)
        made = [await _new_key(platform, number) for number in range(keys)]
        started = time.monotonic()
        failed = await _calls(platform, versions, [key for _, key in made], calls, callers)
        seconds = time.monotonic() - started
        top = await snapshot(clients, processes)
        for key_id, _ in made:
            await platform.call("DELETE", f"/v2/nvcf/keys/{key_id}", expect=204)
        for version in versions:
            path = f"functions/{version.function_id}/versions/{version.id}"
            await platform.call("DELETE", f"/v2/nvcf/deployments/{path}")
            await platform.call("DELETE", f"/v2/nvcf/{path}", expect=204)
        await eventually(lambda: _nothing_kept(data), "all answers expire", 60 + 2.0 * life)
        after = await snapshot(clients, {name: processes[name] for name in ("broker", "gateway")})
        for client in clients:
            await client.close()
        return Report(calls, failed, seconds, before, top, after)


async def _new_key(platform: Platform, number: int) -> tuple[str, str]:
    body = {"description": f"soak {number}", "scopes": ["invoke"]}
    made = (await platform.call("POST", "/v2/nvcf/keys", body))["key"]
    return str(made["id"]), str(made["key"])


async def _control_client(platform: Platform) -> Client:
    user, password = read_credentials(platform.broker.control_credentials_file)
    client = Client()
    await client.connect(platform.broker.url, user=user, password=password)
    return client


async def _nothing_kept(client: Client) -> bool:
    found = await snapshot((client,), {})
    return all(found.streams[name][0] == 0 for name in ("OBJ_nvcf_results_local", "KV_nvcf_idempotency"))


async def _calls(
    platform: Platform, versions: list[Version], keys: list[str], count: int, callers: int
) -> int:
    """Make calls, each with an idempotency key of its own. Returns how many were not answered 200."""
    numbers = iter(range(count))
    failed, prefix = 0, time.time_ns()

    async def caller(session: aiohttp.ClientSession) -> None:
        nonlocal failed
        for number in numbers:
            headers = {
                "Authorization": f"Bearer {keys[number % len(keys)]}",
                "Idempotency-Key": f"{prefix}-{number}",
            }
            url = platform.gateway.url + versions[number % len(versions)].pexec
            try:
                async with session.post(url, data=BODY, headers=headers) as response:
                    failed += response.status != 200 or await response.read() != BODY
            except aiohttp.ClientError:
                failed += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller(session))
    return failed
