"""Memory and time for bodies that are parsed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http import bodies
from nvcf_gateway.http.body_budget import FREE_BYTES, BodyBudget


async def test_one_account_gets_its_share_and_all_together_the_total() -> None:
    budget = BodyBudget(total=1_000_000, per_account=500_000)
    with budget.room("one") as grow:
        for size in (100_000, 400_000, 500_000):
            grow(size)
        with budget.room("one") as second, pytest.raises(HttpProblem, match="this account") as refused:
            second(FREE_BYTES + 1)
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")
        with budget.room("two") as other:
            other(450_000)
            with budget.room("three") as third, pytest.raises(HttpProblem, match="all accounts"):
                third(100_000)
    with budget.room("one") as grow:
        grow(500_000)


async def test_a_body_that_pauses_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "IDLE_TIMEOUT", 0.05)

    class Stalled:
        content_length = 100

        @property
        def content(self) -> Any:
            return self

        async def iter_any(self) -> Any:
            yield b"x"
            await asyncio.sleep(3600)

    with pytest.raises(HttpProblem) as refused:
        await bodies.read_all(Stalled(), 1000)  # type: ignore[arg-type]
    assert refused.value.status == 408


async def test_large_bodies_are_parsed_one_after_the_other() -> None:
    budget = BodyBudget()
    running = 0

    async def parse(number: int) -> int:
        def check(body: bytes) -> int:
            assert running == 0
            return number

        return await budget.parsed(b"x" * 100_000, check)

    assert await asyncio.gather(*(parse(number) for number in range(5))) == [0, 1, 2, 3, 4]
