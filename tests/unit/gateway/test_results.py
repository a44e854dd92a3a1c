"""Decisions about stored results: what is stored, who gets it, and when a request counts as lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nvcf_broker.errors import BrokerError
from nvcf_broker.objects import ObjectExistsError
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import AnsweredElsewhere, CallerGone, HttpProblem
from nvcf_gateway.exchange.pending import Outcome
from nvcf_gateway.exchange.sinks import CollectSink
from nvcf_gateway.exchange.states import State
from nvcf_gateway.invocation.waiting import Ended, stays_queued
from nvcf_gateway.results.idempotency_keys import Claim, patience
from nvcf_gateway.results.result_writer import KeptRequest, TeeSink, is_result
from nvcf_gateway.results.status import may_be_on_its_way, status_of
from nvcf_gateway.results.worker_query import (
    Acknowledged,
    Afterwards,
    QueryResult,
    afterwards,
    query_result,
)
from nvcf_proto.h1 import ResponseHead

CONFIG = GatewayConfig(("", 0), ("", 0), "", Path("key"), spool_memory_bytes=4)


@pytest.mark.parametrize(
    ("status", "keyed", "stored"),
    [
        (200, False, True),
        (200, True, True),
        (500, True, True),
        (202, False, False),
        (202, True, False),
        (502, False, True),
        (502, True, False),
    ],
)
def test_which_responses_are_results(status: int, keyed: bool, stored: bool) -> None:
    assert is_result(status, keyed=keyed) == stored


@pytest.mark.parametrize(
    ("ended", "keyed", "published", "stays"),
    [
        (Ended.ANSWERED, False, True, True),
        (Ended.KEPT, False, True, True),
        (Ended.TIME_OVER, True, True, False),
        (Ended.REJECTED, True, True, False),
        (Ended.BROKEN, True, True, True),
        (Ended.BROKEN, True, False, False),
        (Ended.BROKEN, False, True, False),
    ],
)
def test_which_requests_stay_in_the_queue(ended: Ended, keyed: bool, published: bool, stays: bool) -> None:
    assert stays_queued(ended, keyed=keyed, published=published) == stays


@pytest.mark.parametrize(
    ("place", "status"),
    [("queued", "pending-evaluation"), ("in flight", "in-progress"), (None, "in-progress")],
)
def test_status_of_a_request_without_a_response(place: Any, status: str) -> None:
    assert status_of(place) == status


@pytest.mark.parametrize(
    ("retained", "now", "perhaps"), [(False, 0.0, False), (True, 9.9, True), (True, 10.0, False)]
)
def test_a_request_with_a_key_may_be_on_its_way(retained: bool, now: float, perhaps: bool) -> None:
    poll = cast(Any, SimpleNamespace(tracked=SimpleNamespace(retained=retained), lost_after=10.0))
    assert may_be_on_its_way(poll, now) == perhaps


@pytest.mark.parametrize(
    ("age", "seconds"), [(0.0, 10.0), (20.0, 10.0), (27.0, 3.0), (30.0, 1.0), (90.0, 1.0)]
)
def test_patience_with_a_request_that_is_nowhere(age: float, seconds: float) -> None:
    claim = Claim("q", "v", False, "subject", "local", 1, stored_at=1000.0)
    assert patience(claim, 1000.0 + age) == seconds


@pytest.mark.parametrize(
    ("state", "acknowledged", "then"),
    [
        (State.ANSWERED, Acknowledged.YES, Afterwards.VOID),
        (State.STREAMING, Acknowledged.YES, Afterwards.CARRY_ON),
        (State.STORING, Acknowledged.YES, Afterwards.CARRY_ON),
        (State.WAITING, Acknowledged.NO, Afterwards.VOID),
        (State.WAITING, Acknowledged.YES, Afterwards.STORE),
        (State.WAITING, Acknowledged.PERHAPS, Afterwards.STORE),
        (State.DETACHED, Acknowledged.YES, Afterwards.STORE),
    ],
)
def test_what_becomes_of_the_reply_address_of_a_poll(
    state: State, acknowledged: Acknowledged, then: Afterwards
) -> None:
    assert afterwards(state, acknowledged) is then


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (Outcome.INLINE, QueryResult.ANSWERED),
        (Outcome.STREAMED, QueryResult.ANSWERED),
        (Outcome.TIME_OVER, QueryResult.TIME_OVER),
        (Outcome.BROKEN, QueryResult.BROKEN),
        (Outcome.CUT_OFF, QueryResult.BROKEN),
        (Outcome.REJECTED, QueryResult.BROKEN),
    ],
)
def test_what_a_query_comes_to(outcome: Outcome, result: QueryResult) -> None:
    assert query_result(outcome) is result


def test_the_own_region_is_searched_first() -> None:
    config = GatewayConfig(("", 0), ("", 0), "", Path("key"), region="b", regions=("a", "b", "c"))
    assert config.own_region_first == ("b", "a", "c")


class Store:
    """Stands for the result store."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.saved: list[tuple[int, bytes]] = []

    async def save(self, *of: Any, once: bool) -> None:
        *_, head, body = of
        if self.error is not None:
            raise self.error
        data = b"".join([part async for part in cast(AsyncIterator[bytes], body)])
        self.saved.append((head.status, data))

    def kept(self, *, keyed: bool = True) -> KeptRequest:
        return KeptRequest(CONFIG, cast(Any, self), "q", "a", "f", "v", "local", keyed, once=not keyed)


class Caller(CollectSink):
    """A caller's connection; it leaves before its byte number `leaves_at`."""

    def __init__(self, leaves_at: int | None = None) -> None:
        super().__init__(1000)
        self.leaves_at = leaves_at
        self.finished = self.cut = False

    async def write(self, data: bytes) -> None:
        if self.leaves_at is not None and len(self.body) + len(data) > self.leaves_at:
            raise CallerGone("left")
        await super().write(data)

    async def finish(self) -> None:
        self.finished = True

    def abort(self) -> None:
        self.cut = True


def head_of(data: bytes) -> ResponseHead:
    return ResponseHead(200, [("Content-Length", str(len(data)))])


async def stream(tee: TeeSink, head: ResponseHead, *parts: bytes) -> None:
    await tee.start(head)
    for part in parts:
        await tee.write(part)
    await tee.finish()


@pytest.mark.parametrize("body", [b"", b"few", b"more than memory holds"])
async def test_a_streamed_response_is_stored_when_it_is_complete(body: bytes) -> None:
    store = Store()
    writer = store.kept().sink()
    await writer.start(ResponseHead(200))
    await writer.write(b"of a delivery that broke")
    await writer.start(ResponseHead(201))
    await writer.write(body)
    assert store.saved == []
    await writer.finish()
    assert store.saved == [(201, body)]


async def test_a_second_response_is_late_and_one_that_is_no_result_is_dropped() -> None:
    assert await Store().kept().save(ResponseHead(200), b"x")
    assert not await Store(ObjectExistsError("there")).kept().save(ResponseHead(200), b"x")
    dropped = Store()
    assert await dropped.kept().save(ResponseHead(202), b"x")
    assert dropped.saved == []


async def test_a_store_that_fails_makes_the_worker_try_again() -> None:
    with pytest.raises(HttpProblem) as raised:
        await Store(BrokerError("full")).kept().save(ResponseHead(200), b"x")
    assert raised.value.status == 503


async def test_a_caller_sees_the_last_byte_only_of_what_is_stored() -> None:
    store, caller = Store(), Caller()
    await stream(TeeSink(caller, store.kept().sink()), head_of(b"abc"), b"ab", b"c")
    assert (caller.body, caller.finished, store.saved) == (b"abc", True, [(200, b"abc")])
    late, other = Caller(), Store(ObjectExistsError("there"))
    with pytest.raises(AnsweredElsewhere):
        await stream(TeeSink(late, other.kept().sink()), head_of(b"abc"), b"abc")
    assert (late.body, late.finished, late.cut) == (b"ab", False, True)


@pytest.mark.parametrize("always", [True, False])
async def test_a_response_whose_caller_left_is_stored_to_its_end(always: bool) -> None:
    store, caller = Store(), Caller(leaves_at=1)
    await stream(TeeSink(caller, store.kept().sink(), always=always), ResponseHead(200), b"a", b"bc", b"d")
    assert (caller.body, store.saved) == (b"a", [(200, b"abcd")])


async def test_a_response_that_its_caller_has_is_not_stored_unless_always() -> None:
    store, caller = Store(), Caller()
    await stream(TeeSink(caller, store.kept().sink(), always=False), ResponseHead(200), b"ab")
    assert (caller.body, caller.finished, store.saved) == (b"ab", True, [])


async def test_a_response_beyond_the_limit_is_only_for_its_caller() -> None:
    store, caller = Store(), Caller()
    await stream(TeeSink(caller, store.kept().sink(), limit=3), head_of(b"abcd"), b"ab", b"cd")
    assert caller.body == b"abcd"
    assert [status for status, _ in store.saved] == [507], "a repetition must not execute it again"
    store = Store()
    await stream(TeeSink(Caller(), store.kept().sink(), always=False, limit=3), head_of(b"abcd"), b"abcd")
    assert store.saved == []
    with pytest.raises(CallerGone):
        await stream(TeeSink(Caller(1), store.kept().sink(), limit=3), ResponseHead(200), b"abcd")
