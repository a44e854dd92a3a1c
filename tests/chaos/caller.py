"""A well-behaved client: it has a key for each call, and repeats or polls until the response comes."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.chaos.patience import CALL_TIMEOUT, LONGEST_EXECUTION, PATIENCE

STATUS = "/v2/nvcf/pexec/status/"
SLOW_SECONDS = 60.0
"""The attempts of calls that took longer are recorded."""
LARGE = 400_000
DEAD_LETTER = b"Too Many Deliveries"
_TRANSIENT = (aiohttp.ClientError, TimeoutError, ConnectionError)


@dataclass
class Counts:
    """What the callers of a run observed."""

    sent: int = 0
    first: int = 0
    retried: int = 0
    polled: int = 0
    dead_letters: list[str] = field(default_factory=list)
    """Calls that ended with an error: all five deliveries went to workers that a fault hit."""
    disconnects: int = 0
    """Connections that the callers closed while they waited."""
    failures: Counter[str] = field(default_factory=Counter)
    """Failed attempts, each followed by a repetition or a poll."""
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    trails: dict[str, list[str]] = field(default_factory=dict)
    """The attempts of calls that were lost or slow, with their Unix times."""
    executions: dict[str, tuple[dict[str, Any], str]] = field(default_factory=dict)
    """Each completed call: its body, and the execution that its response is from."""


class Caller:
    """Makes one call after the other, each attempt at a random gateway."""

    def __init__(
        self,
        number: int,
        seed: int,
        urls: list[str],
        path: str,
        headers: dict[str, str],
        counts: Counts,
    ) -> None:
        self._chance = random.Random(f"{seed}/{number}")
        self._number = number
        self._urls = urls
        self._path = path
        self._headers = headers
        self._counts = counts
        self._until: float | None = None
        self._limit: asyncio.Timeout | None = None

    def faults_ended(self) -> None:
        """Count the call in flight as lost if it is not completed `PATIENCE` seconds from now."""
        self._until = asyncio.get_running_loop().time() + PATIENCE
        if self._limit is not None:
            self._limit.reschedule(self._until)

    async def run(self, stop: asyncio.Event) -> None:
        """Make calls until `stop` is set. The call in flight is completed."""
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            made = 0
            while not stop.is_set():
                chance = self._chance
                any_time = chance.uniform(0, LONGEST_EXECUTION)
                body = {
                    "id": f"{self._number}-{made}",
                    "seconds": round(chance.choice((0.0, 0.05, 0.3, any_time)), 3),
                    "pad": chance.choice((0, 0, 0, 1000, LARGE)),
                }
                if chance.random() < 0.1:
                    # Too large for the queue message.
                    body["filler"] = "y" * 60_000
                made += 1
                await self.call(session, body)

    async def call(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> None:
        """Make one call, complete it and count it."""
        counts, name = self._counts, str(body["id"])
        counts.sent += 1
        loop = asyncio.get_running_loop()
        began = loop.time()
        trail: list[str] = []
        try:
            async with asyncio.timeout_at(self._until) as self._limit:
                result, how = await self._complete(session, body, trail)
        except TimeoutError:
            counts.lost.append(name)
            counts.trails[name] = trail
            return
        finally:
            self._limit = None
        if loop.time() - began > SLOW_SECONDS:
            counts.trails[name] = trail
        if result is None:
            counts.dead_letters.append(name)
            return
        counts.slowest = max(counts.slowest, loop.time() - began)
        if result["id"] != name or len(result["pad"]) != body["pad"]:
            counts.wrong.append(f"{name}: got {result['id']}, {len(result['pad'])} bytes")
        counts.executions[name] = (body, f"{result['execution']} ({how})")
        setattr(counts, how, getattr(counts, how) + 1)

    async def _complete(
        self, session: aiohttp.ClientSession, body: dict[str, Any], trail: list[str]
    ) -> tuple[dict[str, Any] | None, str]:
        """Return the result and how it came. The result is None if the request is a dead letter."""
        attempt = 0
        while True:
            attempt += 1
            try:
                status, request_id, result = await self._post(session, body)
                _note(trail, f"call {request_id}", status, result)
                if status == 200:
                    return result, "first" if attempt == 1 else "retried"
                if status == 202:
                    polled = await self._poll(session, request_id, trail)
                    if polled is not None:
                        return polled, "polled"
                elif status == 500 and DEAD_LETTER in result:
                    return None, ""
                else:
                    self._counts.failures[f"call {status}"] += 1
            except _TRANSIENT as error:
                self._counts.failures[f"call {type(error).__name__}"] += 1
                _note(trail, "call", type(error).__name__)
            await asyncio.sleep(self._chance.uniform(0.1, 0.5))

    async def _post(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> tuple[int, str, Any]:
        headers = {**self._headers, "Idempotency-Key": str(body["id"])}
        if self._chance.random() < 0.4:
            headers["NVCF-POLL-SECONDS"] = "1"
        leave = self._chance.uniform(0, 2) if self._chance.random() < 0.05 else None
        try:
            async with asyncio.timeout(leave):
                url = self._chance.choice(self._urls) + self._path
                async with session.post(url, data=json.dumps(body), headers=headers) as response:
                    data = await response.read()
                    result = json.loads(data) if response.status == 200 else data
                    return response.status, response.headers.get("nvcf-reqid", ""), result
        except TimeoutError:
            if leave is not None:
                self._counts.disconnects += 1
            raise

    async def _poll(
        self, session: aiohttp.ClientSession, request_id: str, trail: list[str]
    ) -> dict[str, Any] | None:
        """Poll for the result. Returns None if the call must be repeated instead."""
        headers = {**self._headers, "NVCF-POLL-SECONDS": "5"}
        while True:
            url = self._chance.choice(self._urls) + STATUS + request_id
            try:
                async with session.get(url, headers=headers) as response:
                    data = await response.read()
            except _TRANSIENT as error:
                self._counts.failures[f"poll {type(error).__name__}"] += 1
                _note(trail, "poll", type(error).__name__)
                await asyncio.sleep(self._chance.uniform(0.1, 0.5))
                continue
            _note(trail, "poll", response.status, data)
            if response.status == 200:
                return dict(json.loads(data))
            if response.status != 202:
                self._counts.failures[f"poll {response.status}"] += 1
                return None

    async def repeat(self, body: dict[str, Any], execution: str) -> None:
        """Repeat a completed call, and check that the result is of the same execution."""
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            result, how = await self._complete(session, body, [])
        if result is None:
            self._counts.wrong.append(f"{body['id']}: result of {execution}, then a dead letter")
        elif result["execution"] != execution.partition(" ")[0]:
            self._counts.wrong.append(
                f"{body['id']}: result of {execution}, then of {result['execution']} ({how})"
            )


def _note(trail: list[str], what: str, outcome: int | str, answer: object = "") -> None:
    shown = "" if outcome == 200 else str(answer)[:300]
    trail.append(f"{time.time():.3f} {what}: {outcome} {shown}")
