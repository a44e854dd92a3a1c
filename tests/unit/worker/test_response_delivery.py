"""Delivering a response when no gateway takes it."""

from __future__ import annotations

from typing import Any

import pytest

from nvcf_worker.errors import CallerGone, GatewayGone, Undeliverable
from nvcf_worker.exchange import response_delivery
from nvcf_worker.exchange.response_delivery import Backlog, ResponseDelivery
from nvcf_worker.exchange.waiters import Waiter, Waiters
from nvcf_worker.function.response import Reply
from nvcf_worker.message import AttachTarget, ReplyAddress

NEVER = float("inf")


def address(number: int) -> ReplyAddress:
    return ReplyAddress(AttachTarget(f"http://gateway/{number}", None, "token", None))


class Refusing:
    """Gateways that offer one address after the other, and nobody answers at any of them."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked = 0
        self.delivered = 0

    async def find_gateway(self, request_id: str) -> ReplyAddress:
        self.asked += 1
        return address(self.asked)

    async def deliver(self, *_: Any) -> None:
        self.delivered += 1
        raise self.error


@pytest.mark.parametrize("error", [CallerGone("410"), GatewayGone("refused")])
async def test_between_two_tries_there_is_always_a_pause(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the gateways say: else a worker and its gateways would do nothing else for a minute."""
    refusing, waiters, now, pauses = Refusing(error), Waiters(), [0.0], [0]
    waiters.waiting.append(Waiter(address(0), NEVER))
    transport: Any = refusing
    delivery = ResponseDelivery(
        "id", transport, Backlog(), waiters, Reply(200, [], b""), retained=True,
        kept=False, has_fallback=False, address=lambda: address(0), sent=lambda: None,
    )  # fmt: skip

    async def pause(attempt: int) -> None:
        pauses[0] += 1
        now[0] += response_delivery.RETRY.delay(attempt, 0.0)

    monkeypatch.setattr(delivery, "_pause", pause)
    monkeypatch.setattr("nvcf_worker.exchange.response_delivery.time.monotonic", lambda: now[0])
    with pytest.raises((CallerGone, Undeliverable)):
        await delivery.run()
    assert refusing.asked == pauses[0] + 1
    assert refusing.asked < 30
    assert refusing.delivered <= 2 * refusing.asked + 1
