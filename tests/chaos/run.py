"""One chaos run: load, faults, and a report."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos.caller import Caller, Counts
from tests.chaos.plan import events
from tests.chaos.records import write_records
from tests.chaos.supervised import SupervisedPlatform, running_supervised

CALLERS = 12
REPEATED_AT_ONCE = 8
REPEATED = 1500


async def run(
    directory: Path, seconds: float, seed: int, *, nodes: int = 3, callers: int = CALLERS
) -> tuple[Counts, str]:
    """Make calls for `seconds` while faults are injected. Returns the counts and a report."""
    counts = Counts()
    async with running_supervised(directory, nodes=nodes) as supervised:
        headers = supervised.platform.authorization()
        clients = [
            Caller(number, seed, supervised.gateway_urls, supervised.version.pexec, headers, counts)
            for number in range(callers)
        ]
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for caller in clients:
                tasks.create_task(caller.run(stop))
            await _harm(supervised, seconds, seed)
            supervised.resume()
            stop.set()
            for caller in clients:
                caller.faults_ended()
        await _repeat(clients[0], counts)
        deliveries = await write_records(directory, counts, supervised)
        executed = [json.loads(line)["id"] for line in supervised.notes.read_text().splitlines()]
        return counts, report(counts, supervised, executed, deliveries)


async def _harm(supervised: SupervisedPlatform, seconds: float, seed: int) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    async with asyncio.TaskGroup() as tasks:
        for event in events(seed):
            if loop.time() + event.after >= end:
                break
            await asyncio.sleep(event.after)
            tasks.create_task(supervised.harm(event))
        await asyncio.sleep(max(0.0, end - loop.time()))


async def _repeat(caller: Caller, counts: Counts) -> None:
    """Repeat the completed calls, the earliest first."""
    limit = asyncio.Semaphore(REPEATED_AT_ONCE)

    async def one(body: dict[str, Any], execution: str) -> None:
        async with limit:
            await caller.repeat(body, execution)

    async with asyncio.TaskGroup() as tasks:
        for body, execution in list(counts.executions.values())[:REPEATED]:
            tasks.create_task(one(body, execution))


def report(counts: Counts, supervised: SupervisedPlatform, executed: list[str], deliveries: int) -> str:
    """Return the counts as text."""
    completed = counts.first + counts.retried + counts.polled
    again = sum(number - 1 for number in Counter(executed).values())
    harms = ", ".join(f"{harm}: {number}" for harm, number in sorted(supervised.done.items()))
    restarts = sum(member.restarts for member in (*supervised.gateways, *supervised.workers))
    failures = ", ".join(f"{what}: {number}" for what, number in counts.failures.most_common())
    return "\n".join(
        (
            f"sent {counts.sent}, completed {completed} (first attempt {counts.first}, after a repetition "
            f"{counts.retried}, by poll {counts.polled}), "
            f"dead letters after five deliveries {len(counts.dead_letters)}, lost {len(counts.lost)}, "
            f"wrong or second results {len(counts.wrong)}; slowest {counts.slowest:.1f} s",
            f"executions {len(executed)}, of them repeated {again}; deliveries {deliveries}, "
            f"redeliveries {deliveries - len(set(executed)) if deliveries > len(set(executed)) else 0}",
            f"faults: {harms}; process restarts {restarts}; caller disconnects {counts.disconnects}",
            f"failed attempts: {failures or 'none'}",
            *(f"LOST {name}" for name in counts.lost[:20]),
            *(f"WRONG {text}" for text in counts.wrong[:20]),
        )
    )
