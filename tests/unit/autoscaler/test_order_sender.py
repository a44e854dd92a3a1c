"""The sender of orders: each attempt once, failures again, and a bound on what waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import nats.errors
from nats.aio.msg import Msg

from nvcf_autoscaler.controller import order_sender
from nvcf_autoscaler.controller.order_sender import MOST_QUEUED, TRIES, OrderSender
from nvcf_proto.icms.messages import InstanceOrder
from nvcf_proto.icms.names import ORDER_SUBJECT
from tests.support.waiting import eventually
from tests.unit.autoscaler.records import VERSION


class Gateways:
    """Answers orders; `answers` are used up one after the other, the last one stays."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.orders: list[InstanceOrder] = []

    async def request(
        self, subject: str, payload: bytes, *, timeout: float, headers: dict[str, str] | None = None
    ) -> Msg:
        assert subject == ORDER_SUBJECT
        self.orders.append(InstanceOrder.from_json(payload))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return Msg(_client=None, data=answer)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(gateways: Gateways) -> AsyncIterator[OrderSender]:
    sender = OrderSender(gateways)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(sender.run())
        yield sender
        task.cancel()


def order(number: int = 0, attempt: int = 0) -> InstanceOrder:
    return InstanceOrder(
        request_id=f"r{number}",
        function_version_id=VERSION,
        cluster_id="one",
        gpu_specification_id="s",
        expires_at=1.0,
        attempt=attempt,
    )


async def test_each_attempt_is_sent_once_however_often_it_is_asked_for() -> None:
    gateways, sent = Gateways(b"{}"), []
    async with running(gateways) as sender:
        for attempt in (0, 0, 0, 1, 1):
            sender.send(order(attempt=attempt), lambda: sent.append(1))
        await eventually(lambda: len(sent) == 2, "both are sent")
        sender.send(order(attempt=1))
        sender.send(order(1))
        await eventually(lambda: len(gateways.orders) == 3, "another request")
    assert sorted((each.request_id, each.attempt) for each in gateways.orders) == [
        ("r0", 0), ("r0", 1), ("r1", 0),
    ]  # fmt: skip


async def test_silence_is_tried_again_and_a_refusal_is_remembered() -> None:
    gateways = Gateways(TimeoutError(), nats.errors.NoRespondersError(), b"{}")
    async with running(gateways) as sender:
        sender.send(order())
        await eventually(lambda: len(gateways.orders) == TRIES, "sent in the end")
        await eventually(lambda: sender.problem("r0") is None, "nothing is left to report")
    refusing = Gateways(json.dumps({"error": "no such version"}).encode())
    async with running(refusing) as sender:
        sender.send(order())
        await eventually(lambda: len(refusing.orders) == TRIES, "given up for now")
        assert sender.problem("r0") == "the gateway refuses it: no such version"

        def again() -> bool:
            sender.send(order())
            return len(refusing.orders) > TRIES

        await eventually(again, "an attempt that failed may be made again")


async def test_a_full_queue_drops_what_will_be_ordered_again() -> None:
    sender = OrderSender(Gateways(b"{}"))
    for number in range(MOST_QUEUED + 1):
        sender.send(order(number))
    assert sender.problem(f"r{MOST_QUEUED}") == "too many orders wait for a gateway"
    assert sender.problem("r0") is None


def test_what_is_remembered_of_attempts_is_bounded() -> None:
    attempts = order_sender.LastAttempts()
    for number in range(order_sender.MOST_ATTEMPTS + 10):
        assert attempts.begin(f"r{number}", 0)
    assert not attempts.begin("r100", 0)
    assert attempts.begin("r0", 0), "the oldest are forgotten: sending again is harmless"
