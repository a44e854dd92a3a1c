"""What a leaving worker tells the queue of requests that do not end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from nvcf_worker import dispatcher as dispatcher_module
from nvcf_worker.dispatcher import Dispatcher
from nvcf_worker.queue.inflight import InFlight
from nvcf_worker.queue.planner import Slots
from nvcf_worker.queue.puller import ConsumerLimits
from tests.unit.worker.test_work import message


class Connection:
    """Takes acknowledgements."""

    is_closed = False

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []

    async def publish(self, subject: str, payload: bytes) -> None:
        self.published.append((subject, payload))


async def test_a_thread_whose_caller_has_left_is_not_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "HAND_BACK_WAIT", 0.01)
    inflight, connection, done = InFlight(None), Connection(), asyncio.Event()
    inflight.use(connection)  # type: ignore[arg-type]

    async def like_a_thread(*_: Any) -> None:
        await done.wait()

    exchanges: Any = None
    tunnels: Any = SimpleNamespace(caller_left=lambda request_id: False)
    dispatcher = Dispatcher(inflight, Slots(2, lambda: None), exchanges, tunnels, like_a_thread)
    requests = [message(), message()]
    left, wanted = (each.requestId for each in requests)
    for each in requests:
        reply = f"ack.{each.requestId}"
        sent: Any = SimpleNamespace(data=each.SerializeToString(), reply=reply, headers=None, subject="rq")
        await dispatcher.receive(sent, "here", ConsumerLimits())
    dispatcher.cancel_request(left)
    await dispatcher.finish(0.0)
    assert sorted(connection.published) == sorted([(f"ack.{left}", b"+ACK"), (f"ack.{wanted}", b"-NAK")])
    done.set()
