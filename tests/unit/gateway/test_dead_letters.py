"""A sweep that cannot remove what it finds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nvcf_broker.jetstream import StoredMessage
from nvcf_gateway.results import dead_letters as exhausted
from nvcf_gateway.results.dead_letters import DeadLetters
from nvcf_gateway.results.hand_backs import HandBacks


class Denying:
    """A queue that keeps its message, whatever is done."""

    region = "here"

    def __init__(self) -> None:
        self.removals = 0

    async def stuck(self, version_id: str) -> int:
        return 7

    async def stored(self, version_id: str, sequence: int, region: str) -> StoredMessage:
        return StoredMessage("rq.here.v.no-request", 7, b"", {})

    async def remove(self, *_: object) -> None:
        self.removals += 1


async def test_a_message_that_stays_holds_up_no_other_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhausted, "SETTLE_SECONDS", 0.0)
    queue, unused = Denying(), object()
    requests: Any = unused
    sweep = DeadLetters(requests, queue, requests, ("here",), lambda: (), HandBacks(0.0))  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        await sweep.sweep_one("v")
    assert queue.removals == 1
