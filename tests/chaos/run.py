"""One chaos run: load, harm, and at the end the reckoning."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos.caller import Caller, Counts
from tests.chaos.plan import events
from tests.chaos.town import Town, running_town

CALLERS = 12
ASKED_AGAIN_AT_ONCE = 8
ASKED_AGAIN = 1500


async def run(
    directory: Path, seconds: float, seed: int, *, nodes: int = 3, callers: int = CALLERS
) -> tuple[Counts, str]:
    """Callers call for `seconds` while things go wrong. Returns what they saw, and a report in words."""
    counts = Counts()
    async with running_town(directory, nodes=nodes) as town:
        headers = town.platform.authorization()
        people = [
            Caller(number, seed, town.gateway_urls, town.version.pexec, headers, counts)
            for number in range(callers)
        ]
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for caller in people:
                tasks.create_task(caller.run(stop))
            await _harm(town, seconds, seed)
            town.heal()
            stop.set()
        await _ask_again(people[0], counts)
        executed = [json.loads(line)["id"] for line in town.notes.read_text().splitlines()]
        return counts, report(counts, town, executed, await _deliveries(town))


async def _harm(town: Town, seconds: float, seed: int) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    async with asyncio.TaskGroup() as tasks:
        for event in events(seed):
            if loop.time() + event.after >= end:
                break
            await asyncio.sleep(event.after)
            tasks.create_task(town.harm(event))
        await asyncio.sleep(max(0.0, end - loop.time()))


async def _ask_again(caller: Caller, counts: Counts) -> None:
    """All answered calls, the earliest first, in a bounded number at once."""
    limit = asyncio.Semaphore(ASKED_AGAIN_AT_ONCE)

    async def one(body: dict[str, Any], execution: str) -> None:
        async with limit:
            await caller.ask_again(body, execution)

    async with asyncio.TaskGroup() as tasks:
        for body, execution in list(counts.executions.values())[:ASKED_AGAIN]:
            tasks.create_task(one(body, execution))


async def _deliveries(town: Town) -> int:
    """How many deliveries the queue has made."""
    client = await town.platform.broker_client()
    try:
        stream = f"rq_local_{town.version.id}"
        answer = await client.request(f"$JS.API.CONSUMER.INFO.{stream}.{stream}_workers", b"", timeout=10)
        return int(json.loads(answer.data)["delivered"]["consumer_seq"])
    finally:
        await client.close()


def report(counts: Counts, town: Town, executed: list[str], deliveries: int) -> str:
    """The counts in words."""
    answered = counts.first + counts.retried + counts.polled
    again = sum(number - 1 for number in Counter(executed).values())
    harms = ", ".join(f"{harm}: {number}" for harm, number in sorted(town.done.items()))
    restarts = sum(member.restarts for member in (*town.gateways, *town.workers))
    failures = ", ".join(f"{what}: {number}" for what, number in counts.failures.most_common())
    return "\n".join(
        (
            f"sent {counts.sent}, answered {answered} (first time {counts.first}, after a repetition "
            f"{counts.retried}, by poll {counts.polled}), "
            f"given up after five deliveries {len(counts.given_up)}, lost {len(counts.lost)}, "
            f"answered wrongly or twice {len(counts.wrong)}; slowest {counts.slowest:.1f} s",
            f"executions {len(executed)}, of them again {again}; deliveries {deliveries}, "
            f"redeliveries {deliveries - len(set(executed)) if deliveries > len(set(executed)) else 0}",
            f"harm: {harms}; process restarts {restarts}; callers left {counts.left} times",
            f"on the way: {failures or 'nothing'}",
            *(f"LOST {name}" for name in counts.lost[:20]),
            *(f"WRONG {text}" for text in counts.wrong[:20]),
        )
    )
