"""Handing answers over when every door turns out to be shut."""

from __future__ import annotations

from typing import Any

import pytest

from nvcf_worker.errors import CallerGone, GatewayGone, Undeliverable
from nvcf_worker.exchange import handover
from nvcf_worker.exchange.handover import Handover
from nvcf_worker.exchange.transports import Channels
from nvcf_worker.exchange.waiters import Waiter, Waiters
from nvcf_worker.function.response import Reply
from nvcf_worker.message import AttachTarget, Door

NEVER = float("inf")


def door(number: int) -> Door:
    return Door(AttachTarget(f"http://gateway/{number}", None, "token", None))


class Shut:
    """Gateways that offer one door after the other, and nobody behind any of them."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked = 0
        self.delivered = 0

    async def ask(self, request_id: str) -> Door:
        self.asked += 1
        return door(self.asked)

    async def deliver(self, *_: Any) -> None:
        self.delivered += 1
        raise self.error


@pytest.mark.parametrize("error", [CallerGone("410"), GatewayGone("refused")])
async def test_between_two_tries_there_is_always_a_pause(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the doors say: else a worker and its gateways would do nothing else for a minute."""
    shut, waiters, now, pauses = Shut(error), Waiters(), [0.0], [0]
    waiters.waiting.append(Waiter(door(0), NEVER))
    channels: Any = Channels(deliverer=shut, attach=None, rescuer=shut, listen=None)  # type: ignore[arg-type]
    answer = Handover(
        "id", channels, waiters, Reply(200, [], b""), kept=True, own_door=lambda: door(0),
        written=lambda: None,
    )  # fmt: skip

    async def pause(attempt: int) -> None:
        pauses[0] += 1
        now[0] += handover.LOOK_AGAIN.delay(attempt, 0.0)

    monkeypatch.setattr(answer, "_pause", pause)
    monkeypatch.setattr("nvcf_worker.exchange.handover.time.monotonic", lambda: now[0])
    with pytest.raises((CallerGone, Undeliverable)):
        await answer.run()
    assert shut.asked == pauses[0] + 1
    assert shut.asked < 30
    assert shut.delivered <= 2 * shut.asked + 1
