"""A sane client: it gives each call a key, and repeats or polls until it has the answer."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

STATUS = "/v2/nvcf/pexec/status/"
CALL_PATIENCE = 15.0
GIVE_UP = 150.0
LARGE = 400_000
GIVEN_UP = b"Too Many Deliveries"
_TROUBLE = (aiohttp.ClientError, TimeoutError, ConnectionError)


@dataclass
class Counts:
    """What the callers of a run saw."""

    sent: int = 0
    first: int = 0
    retried: int = 0
    polled: int = 0
    given_up: list[str] = field(default_factory=list)
    """Answered with an error: the queue delivered them five times, each time to somebody that was harmed."""
    left: int = 0
    """Connections that the callers themselves cut while they waited."""
    failures: Counter[str] = field(default_factory=Counter)
    """Answers other than the one wanted, each followed by a repetition or poll."""
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    executions: dict[str, tuple[dict[str, Any], str]] = field(default_factory=dict)
    """Each answered call: its body and the execution that answered it."""


class Caller:
    """Makes calls one after the other, at whichever gateway is there."""

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

    async def run(self, stop: asyncio.Event) -> None:
        """Call until told to stop; the call under way is brought to its end."""
        timeout = aiohttp.ClientTimeout(total=CALL_PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            made = 0
            while not stop.is_set():
                chance = self._chance
                body = {
                    "id": f"{self._number}-{made}",
                    "seconds": round(chance.choice((0.0, 0.05, 0.3, chance.uniform(0, 3))), 3),
                    "pad": chance.choice((0, 0, 0, 1000, LARGE)),
                }
                if chance.random() < 0.1:
                    # More than fits into the queue message.
                    body["filler"] = "y" * 60_000
                made += 1
                await self.call(session, body)

    async def call(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> None:
        """One call to its end, counted."""
        counts, name = self._counts, str(body["id"])
        counts.sent += 1
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(GIVE_UP):
                answer, how = await self._until_answered(session, body)
        except TimeoutError:
            counts.lost.append(name)
            return
        if answer is None:
            counts.given_up.append(name)
            return
        counts.slowest = max(counts.slowest, loop.time() - began)
        if answer["id"] != name or len(answer["pad"]) != body["pad"]:
            counts.wrong.append(f"{name}: got {answer['id']}, {len(answer['pad'])} bytes")
        counts.executions[name] = (body, f"{answer['execution']} ({how})")
        setattr(counts, how, getattr(counts, how) + 1)

    async def _until_answered(
        self, session: aiohttp.ClientSession, body: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, str]:
        """The answer and how it came; None for the error that ends a request for good."""
        attempt = 0
        while True:
            attempt += 1
            try:
                status, request_id, answer = await self._post(session, body)
                if status == 200:
                    return answer, "first" if attempt == 1 else "retried"
                if status == 202:
                    polled = await self._poll(session, request_id)
                    if polled is not None:
                        return polled, "polled"
                elif status == 500 and GIVEN_UP in answer:
                    return None, ""
                else:
                    self._counts.failures[f"call {status}"] += 1
            except _TROUBLE as error:
                self._counts.failures[f"call {type(error).__name__}"] += 1
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
                    answer = json.loads(data) if response.status == 200 else data
                    return response.status, response.headers.get("nvcf-reqid", ""), answer
        except TimeoutError:
            if leave is not None:
                self._counts.left += 1
            raise

    async def _poll(self, session: aiohttp.ClientSession, request_id: str) -> dict[str, Any] | None:
        """The answer; None when only a repeated call can tell."""
        headers = {**self._headers, "NVCF-POLL-SECONDS": "5"}
        while True:
            url = self._chance.choice(self._urls) + STATUS + request_id
            try:
                async with session.get(url, headers=headers) as response:
                    data = await response.read()
            except _TROUBLE as error:
                self._counts.failures[f"poll {type(error).__name__}"] += 1
                await asyncio.sleep(self._chance.uniform(0.1, 0.5))
                continue
            if response.status == 200:
                return dict(json.loads(data))
            if response.status != 202:
                self._counts.failures[f"poll {response.status}"] += 1
                return None

    async def ask_again(self, body: dict[str, Any], execution: str) -> None:
        """Repeat an answered call: it must be the very answer that came before."""
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            answer, how = await self._until_answered(session, body)
        if answer is None:
            self._counts.wrong.append(f"{body['id']}: answered by {execution}, then given up")
        elif answer["execution"] != execution.partition(" ")[0]:
            self._counts.wrong.append(
                f"{body['id']}: answered by {execution}, then by {answer['execution']} ({how})"
            )
