"""B10: a worker that floods a gateway with queries takes a bounded part of it; others are answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.results.fallback import MOST_AT_ONCE, FallbackLookup
from nvcf_proto.ids import new_id
from nvcf_proto.subjects import fallback_subject, worker_permissions
from tests.support.waiting import eventually


class Queue:
    """Counts who is looked up, and answers nobody before it may."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.may = asyncio.Event()

    async def request(self, version_id: str, request_id: str, region: str) -> None:
        self.asked[version_id] += 1
        await self.may.wait()


async def test_b10_a_flood_of_one_version_is_cut_and_others_are_answered() -> None:
    attacker, victim, queue = new_id(), new_id(), Queue()
    answers: Counter[str] = Counter()

    def query(version_id: str) -> Any:
        async def publish(*_: Any, **__: Any) -> None:
            answers[version_id] += 1

        client = SimpleNamespace(publish=publish)
        subject = fallback_subject(version_id)
        return SimpleNamespace(subject=subject, data=new_id().encode(), reply="inbox", _client=client)

    async with BackgroundTasks() as background:
        nothing = cast("Any", SimpleNamespace(own_region_first=("local",), region="local"))
        lookup = FallbackLookup(
            nothing, nothing, str, nothing, cast("Any", queue), nothing, nothing, background
        )
        for _ in range(20 * MOST_AT_ONCE):
            await lookup.on_query(query(attacker))
        await lookup.on_query(query(victim))
        await eventually(lambda: queue.asked[victim] == 1, "the other worker's query is looked up")
        assert queue.asked[attacker] == MOST_AT_ONCE
        queue.may.set()
        await eventually(lambda: answers[victim] == 1, "and answered")
        await eventually(lambda: answers[attacker] == MOST_AT_ONCE, "those of the flood too, as far as taken")
        await lookup.on_query(query(attacker))
        await eventually(lambda: answers[attacker] == MOST_AT_ONCE + 1, "the flood is over")


def test_b10_a_worker_cannot_ask_for_the_subjects_of_a_stream() -> None:
    granted = worker_permissions(("local",), new_id(), new_id())
    assert not any("STREAM." in each for each in granted.publish)
