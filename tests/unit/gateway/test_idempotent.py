"""Whose an idempotency key is after each way out of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nvcf_broker.errors import BrokerError
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.errors import CallerGone, HttpProblem, NoRoom, NotEnqueued
from nvcf_gateway.exchange.bodies import empty_body
from nvcf_gateway.exchange.call import Call
from nvcf_gateway.invocation.idempotent import Execution, IdempotentCalls, holds_key
from nvcf_gateway.invocation.waiting import Ended, StillQueued
from nvcf_gateway.quotas.limits import Quota, QuotaExceeded
from nvcf_gateway.results.idempotency_keys import Claim
from nvcf_proto.h1 import RequestHead


@pytest.mark.parametrize(
    ("ended", "status", "held"),
    [
        (Ended.ANSWERED, 200, True),
        (Ended.ANSWERED, 500, True),
        (Ended.ANSWERED, 202, True),
        (Ended.ANSWERED, 502, False),
        (Ended.KEPT, 0, True),
        (Ended.BROKEN, 200, True),
        (Ended.TIME_OVER, 0, False),
        (HttpProblem(413), 0, False),
        (NoRoom("full"), 0, False),
        (NotEnqueued("full"), 0, False),
        (HttpProblem(500), 0, True),
        (HttpProblem(504), 0, True),
        (StillQueued(503), 0, True),
        (CallerGone("left"), 0, True),
        (asyncio.CancelledError(), 0, True),
    ],
)
def test_a_key_is_free_only_if_nothing_can_be_executed_any_more(
    ended: Ended | BaseException, status: int, held: bool
) -> None:
    assert holds_key(ended, status) == held


@dataclass
class Parts:
    """Stand-ins for the broker's bucket of keys, the tracking records and the wait."""

    first: bool = True
    claim_error: Exception | None = None
    outcome: Callable[[], Ended] = lambda: Ended.ANSWERED
    blocked: str = ""
    full: HttpProblem | None = None
    claimed: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    proceed: asyncio.Event = field(default_factory=asyncio.Event)

    async def _step(self, name: str) -> None:
        if self.blocked == name:
            self.reached.set()
            await self.proceed.wait()

    async def claim(self, *of: Any) -> Claim:
        await self._step("claim")
        if self.claim_error is not None:
            raise self.claim_error
        self.claimed.append(of[3])
        return Claim(of[5], of[2], self.first, "subject", "local", 1)

    def require_room_for_an_answer(self, account: str) -> None:
        if self.full is not None:
            raise self.full

    async def holder(self, *of: Any) -> Claim | None:
        return None if self.first else Claim("q", "v", False, "subject", "local", 1)

    async def release(self, claim: Claim) -> None:
        self.released.append(claim.request_id)

    def kept_call(self, call: Call) -> Any:
        return SimpleNamespace(sink=lambda: None)

    async def run(self, call: Call, sink: Any, trace: Any, withdrawn: Any = None) -> Ended:
        await self._step("run")
        sink.status = 200
        return self.outcome()


def a_call() -> Call:
    caller = SimpleNamespace(nca_id="account")
    version = SimpleNamespace(id="v", function_id="f")
    return Call(cast(Any, caller), cast(Any, version), RequestHead("POST", "/"), empty_body(), 1, "q", 0.0)


async def executed(
    parts: Parts, owner: BackgroundTasks, *, key: str | None = "k", error: Exception | None = None
) -> Execution:
    """One call as the routes execute it; `error` is what its assets come to."""
    stand_in: Any = parts
    calls = IdempotentCalls(stand_in, stand_in, stand_in, owner, stand_in)
    request = cast(
        Any,
        SimpleNamespace(
            headers={} if key is None else {"Idempotency-Key": key}, raw_path="/p", raw_headers=()
        ),
    )
    async with calls.execution(request, a_call()) as execution:
        if execution.earlier is None:
            await parts._step("assets")
            if error is not None:
                raise error
            await execution.run(execution.call, cast(Any, SimpleNamespace()), {})
    return execution


async def test_without_a_key_nothing_is_claimed() -> None:
    parts = Parts()
    async with BackgroundTasks() as owner:
        execution = await executed(parts, owner, key=None)
    assert (parts.claimed, parts.released) == ([], [])
    assert not execution.call.keyed


async def test_a_call_that_is_answered_holds_its_key() -> None:
    parts = Parts()
    async with BackgroundTasks() as owner:
        execution = await executed(parts, owner)
    assert execution.call.keyed
    assert execution.call.keep_queued
    assert (parts.claimed, parts.released) == (["k"], [])


async def test_the_key_of_another_call_is_not_freed() -> None:
    parts = Parts(first=False)
    async with BackgroundTasks() as owner:
        execution = await executed(parts, owner)
    assert execution.earlier is not None
    assert parts.released == []


@pytest.mark.parametrize("error", [HttpProblem(404), HttpProblem(503), RuntimeError()])
async def test_a_failure_before_the_queue_frees_the_key(error: Exception) -> None:
    parts = Parts()
    async with BackgroundTasks() as owner:
        with pytest.raises(type(error)):
            await executed(parts, owner, error=error)
        assert parts.released == ["q"], "before the caller learns of it"


async def test_a_claim_that_fails_is_nobodys() -> None:
    parts = Parts(claim_error=BrokerError("the broker did not answer"))
    async with BackgroundTasks() as owner:
        with pytest.raises(HttpProblem) as raised:
            await executed(parts, owner)
    assert raised.value.status == 503
    assert parts.released == []


@pytest.mark.parametrize(
    ("blocked", "released"),
    [("claim", ["q"]), ("assets", ["q"]), ("run", [])],
)
async def test_a_caller_that_leaves_frees_the_key_unless_its_call_may_be_queued(
    blocked: str, released: list[str]
) -> None:
    parts = Parts(blocked=blocked)
    async with BackgroundTasks() as owner:
        task = asyncio.create_task(executed(parts, owner))
        await parts.reached.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        parts.proceed.set()
    assert parts.released == released


async def test_a_wait_that_comes_to_nothing_frees_the_key() -> None:
    parts = Parts(outcome=lambda: Ended.TIME_OVER)
    async with BackgroundTasks() as owner:
        await executed(parts, owner)
    assert parts.released == ["q"]


async def test_no_answer_is_promised_that_cannot_be_kept() -> None:
    parts = Parts(full=QuotaExceeded(Quota.KEPT_ANSWERS, 1, 1))
    async with BackgroundTasks() as owner:
        with pytest.raises(QuotaExceeded):
            await executed(parts, owner)
        assert (parts.claimed, parts.released) == ([], [])
        parts.first = False
        execution = await executed(parts, owner)
    assert execution.earlier is not None, "a repeated call gets the answer that was promised"
