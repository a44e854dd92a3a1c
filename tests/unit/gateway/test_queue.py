"""What a queue says of itself when the broker has no answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nats.errors
import pytest

from nvcf_broker.errors import BrokerError
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import NotStored
from nvcf_gateway.queue.request_queue import RequestQueue

V = "22222222-2222-4222-8222-222222222222"
Q = "33333333-3333-4333-8333-333333333333"
NO_MESSAGE = {"code": 404, "err_code": 10037, "description": "no message found"}
NO_STREAM = {"code": 404, "err_code": 10059, "description": "stream not found"}
UNAVAILABLE = {"code": 503, "err_code": 10008, "description": "JetStream system temporarily unavailable"}


def queue(*answers: dict[str, Any]) -> RequestQueue:
    """One whose broker gives these answers."""
    left = list(answers)

    async def request(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(data=json.dumps(left.pop(0)).encode())

    requests = cast(Any, SimpleNamespace(request=request))
    config = GatewayConfig(("", 0), ("", 0), "", Path("key"))
    return RequestQueue(cast(Any, None), requests, config, lambda _: 1)


@pytest.mark.parametrize("error", [NO_MESSAGE, NO_STREAM])
async def test_a_request_that_is_not_there_is_nowhere(error: dict[str, Any]) -> None:
    assert await queue(*[{"error": error}] * 3).place(V, Q, "local") is None


async def test_a_request_is_not_lost_because_the_broker_cannot_say_where_it_is() -> None:
    with pytest.raises(BrokerError, match="temporarily unavailable"):
        await queue({"error": UNAVAILABLE}).place(V, Q, "local")
    with pytest.raises(BrokerError, match="temporarily unavailable"):
        await queue({"message": {"seq": 1}}, {"error": UNAVAILABLE}).place(V, Q, "local")


async def test_a_request_that_was_answered_is_not_stored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its acknowledgement was lost, not the request: stored again, it would run again."""
    published: list[str] = []
    monkeypatch.setattr(
        "nvcf_gateway.queue.request_queue.publish_delay", lambda attempt, _: 0.0 if attempt < 3 else None
    )

    async def request(subject: str, *_: object, **__: object) -> SimpleNamespace:
        published.append(subject)
        raise TimeoutError

    config = GatewayConfig(("", 0), ("", 0), "", Path("key"))
    of = RequestQueue(cast(Any, None), cast(Any, SimpleNamespace(request=request)), config, lambda _: 1)

    async def ensured(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(of, "ensure", ensured)
    assert await of.publish(V, Q, b"", {}, answered=lambda: True) is None
    assert len(published) == 1
    with pytest.raises(BrokerError):
        await of.publish(V, Q, b"", {})
    assert len(published) == 4


REFUSED = {"error": {"code": 400, "err_code": 10054, "description": "message size exceeds maximum allowed"}}
LOST = TimeoutError()


@pytest.mark.parametrize(
    ("answers", "certain"),
    [
        ([REFUSED, REFUSED], True),
        ([nats.errors.NoRespondersError()] * 4, True),
        ([LOST, LOST], False),
        ([LOST, REFUSED], False),
        ([REFUSED, LOST], False),
    ],
)
@pytest.mark.parametrize("late", [True, False])
async def test_a_request_is_certainly_not_queued_only_if_each_attempt_was_refused(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], certain: bool, late: bool
) -> None:
    """`late`: the deadline ends the attempts, else their number does."""
    delays = {1: 0.0, 2: 60.0 if late else None}
    monkeypatch.setattr("nvcf_gateway.queue.request_queue.publish_delay", lambda attempt, _: delays[attempt])
    left = list(answers)

    async def request(*_: object, **__: object) -> SimpleNamespace:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(data=json.dumps(answer).encode())

    config = GatewayConfig(("", 0), ("", 0), "", Path("key"))
    of = RequestQueue(cast(Any, None), cast(Any, SimpleNamespace(request=request)), config, lambda _: 1)

    async def ensured(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(of, "ensure", ensured)
    deadline = asyncio.get_running_loop().time() + 0.2
    with pytest.raises(BrokerError) as raised:
        await of.publish(V, Q, b"", {}, deadline=deadline if late else None)
    assert isinstance(raised.value, NotStored) == certain
    assert not left


async def test_no_attempt_is_made_in_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that rings early leaves no time for an attempt, which would end unknown."""
    attempts: list[str] = []

    async def request(subject: str, *_: object, **__: object) -> object:
        attempts.append(subject)
        if len(attempts) > 1:
            raise TimeoutError
        refused = {"error": {"code": 400, "err_code": 10054, "description": "message size exceeds maximum"}}
        return SimpleNamespace(data=json.dumps(refused).encode())

    config = GatewayConfig(("", 0), ("", 0), "", Path("key"))
    of = RequestQueue(cast(Any, None), cast(Any, SimpleNamespace(request=request)), config, lambda _: 1)

    async def ensured(*_: object, **__: object) -> None:
        return None

    async def early(_: float) -> None:
        return None

    monkeypatch.setattr(of, "ensure", ensured)
    deadline = asyncio.get_running_loop().time() + 0.05
    monkeypatch.setattr(asyncio, "sleep", early)
    with pytest.raises(NotStored):
        await of.publish(V, Q, b"", {}, deadline=deadline)
    assert len(attempts) == 1
