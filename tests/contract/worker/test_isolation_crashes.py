"""Child processes that die: what becomes of their requests, and of those beside them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from tests.contract.worker.isolated_worker import StartIsolated, ask
from tests.support.peers.calls import BrokenResponse
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("how", "told"),
    [("segfault", "SIGSEGV"), ("kill", "SIGKILL"), ("exit", "exit code 7")],
)
async def test_a_crash_is_tried_once_more_and_then_named_in_the_error(
    gateway: PeerGateway, start_isolated: StartIsolated, how: str, told: str
) -> None:
    worker = start_isolated()
    await worker.ready()
    (first,) = worker.children()
    answer = await ask(gateway, f"/die/{how}")
    assert answer.json()["attempt"] == 2
    assert answer.json()["pid"] != first.pid
    failed = await ask(gateway, f"/die/{how}?always=1")
    assert failed.status == 500
    assert told in failed.json()["detail"]
    assert failed.json()["type"].endswith(":function-process-died")
    assert len(worker.notes("die 2")) == 2
    assert worker.notes("die 3") == []
    assert told in worker.process.text()
    # The worker itself never lost its connection, and goes on.
    assert worker.process.text().count("connected to the broker") == 1
    assert (await ask(gateway, "/plain")).status == 200


async def test_without_retry_a_crash_fails_at_once(
    gateway: PeerGateway, start_isolated: StartIsolated
) -> None:
    worker = start_isolated(NO_RETRY="1")
    await worker.ready()
    assert (await ask(gateway, "/die/exit")).status == 500
    assert worker.notes("die 2") == []


async def test_a_crash_costs_the_other_process_nothing(
    gateway: PeerGateway, start_isolated: StartIsolated
) -> None:
    worker = start_isolated(PROCESSES="2", SLOTS="8")
    worker.gate.touch()
    await worker.ready(2)
    calls = [await gateway.invoke(path="/hold") for _ in range(4)]
    await eventually(lambda: len(worker.notes("hold")) == 4, "both processes have work")
    victim, survivor = sorted(set(worker.notes("hold")))
    assert worker.notes("hold").count(victim) == 2
    os.kill(victim, signal.SIGKILL)
    # Whoever was in a crash runs alone the next time: the second waits for an empty process.
    await eventually(lambda: len(worker.notes("hold")) == 5, "the first lost one runs again")
    worker.gate.unlink()
    async with asyncio.timeout(20):
        answers = [(await call.answer()).json() for call in calls]
    assert sorted(answer["attempt"] for answer in answers) == [1, 1, 2, 2]
    assert all(answer["pid"] != victim for answer in answers)
    assert [answer["pid"] for answer in answers if answer["attempt"] == 1] == [survivor] * 2


async def test_a_killer_costs_its_neighbours_no_delivery(
    gateway: PeerGateway, start_isolated: StartIsolated
) -> None:
    """All of a killer's tries hit neighbours once at most, and that try is repeated by the worker itself."""
    worker = start_isolated(SLOTS="8")
    worker.gate.touch()
    await worker.ready()
    neighbours = [await gateway.invoke(path="/hold") for _ in range(3)]
    await eventually(lambda: len(worker.notes("hold")) == 3, "the neighbours run")
    killer = await gateway.invoke(path="/die/exit?always=1")
    await eventually(lambda: "died: exit code 7" in worker.process.text(), "a crash")
    worker.gate.unlink()
    assert (await killer.answer()).status == 500
    assert [(await call.answer()).json()["attempt"] for call in neighbours] == [2, 2, 2]
    assert worker.process.text().count("died: exit code 7; requests in it") == 2
    state = await gateway.consumer()
    assert (state["delivered"]["consumer_seq"], state["num_redelivered"]) == (4, 0)


async def test_a_crash_after_the_body_was_streamed_goes_back_to_the_queue(
    gateway: PeerGateway, start_isolated: StartIsolated
) -> None:
    worker = start_isolated()
    await worker.ready()

    async def rest() -> AsyncIterator[bytes]:
        yield b"x" * 100_000

    await gateway.invoke(b"begin", path="/die_after_body", rest=rest())

    async def delivered_again() -> bool:
        state = await gateway.consumer()
        return bool(state["delivered"]["consumer_seq"] == 2)

    await eventually(delivered_again, "delivered again")


async def test_a_crash_in_the_middle_of_a_stream_breaks_it(
    gateway: PeerGateway, start_isolated: StartIsolated
) -> None:
    worker = start_isolated()
    await worker.ready()
    with pytest.raises(BrokenResponse):
        await ask(gateway, "/die_in_stream")
    assert (await ask(gateway, "/plain")).status == 200


async def test_a_broken_stream_that_the_gateway_never_saw_is_answered_with_an_error(
    gateway: PeerGateway, start_isolated: StartIsolated
) -> None:
    worker = start_isolated()
    await worker.ready()
    gateway.overlook_posts = 1
    answer = await ask(gateway, "/die_in_stream")
    assert answer.status == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert b"one" not in answer.body
