"""Sends orders of instances to a gateway, which publishes their creation messages.

Sending never delays the control loop. The PENDING record of an instance is written before its order, so an
order that is lost is sent again by a later reconcile, of this replica or of the next leader.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import nats.errors

from nvcf_broker.connection import describe_error
from nvcf_broker.jetstream import Requester
from nvcf_broker.requests import raise_if_cancelled
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.messages import InstanceOrder
from nvcf_proto.icms.names import ORDER_SUBJECT
from nvcf_proto.models.record import decode_object

_log = logging.getLogger(__name__)

AT_ONCE = 16
MOST_QUEUED = 4096
MOST_PROBLEMS = 1024
MOST_ATTEMPTS = 65_536
ANSWER_TIMEOUT = 1.0
# A repeated order with the same attempt is published once: its message has the same id.
TRIES = 3
PAUSE = 0.2

Sent = Callable[[], None]


@dataclass(frozen=True)
class _Queued:
    order: InstanceOrder
    on_sent: Sent | None


class OrderRefused(Exception):  # the gateway's refusal, never seen by users
    """A gateway refuses an order, with the reason."""


class LastAttempts:
    """The last attempt of each request that was made, so that none is made twice; bounded."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, int] = OrderedDict()

    def begin(self, request_id: str, attempt: int) -> bool:
        """Note an attempt. Return False if it was made already."""
        if self._last.get(request_id) == attempt:
            return False
        self._last[request_id] = attempt
        self._last.move_to_end(request_id)
        while len(self._last) > MOST_ATTEMPTS:
            self._last.popitem(last=False)
        return True

    def failed(self, request_id: str) -> None:
        """Note that the last attempt failed: it may be made again."""
        self._last.pop(request_id, None)


class OrderSender:
    """Sends queued orders, some at a time, as long as `run` runs."""

    def __init__(self, requests: Requester) -> None:
        self._requests = requests
        self._queue: asyncio.Queue[_Queued] = asyncio.Queue(MOST_QUEUED)
        self._problems: OrderedDict[str, str] = OrderedDict()
        self._attempts = LastAttempts()

    def send(self, order: InstanceOrder, on_sent: Sent | None = None) -> None:
        """Queue an order. `on_sent` is called when its message has been published.

        One that is queued or was sent with the same attempt is left out. A full queue drops it; it is ordered
        again like one that was lost.
        """
        if not self._attempts.begin(order.request_id, order.attempt):
            return
        try:
            self._queue.put_nowait(_Queued(order, on_sent))
        except asyncio.QueueFull:
            self._attempts.failed(order.request_id)
            self._note(order, "too many orders wait for a gateway")

    def problem(self, request_id: str) -> str | None:
        """Return why the last order of a request could not be sent, as far as this replica knows."""
        return self._problems.get(request_id)

    async def run(self) -> None:
        """Send orders until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(self._send_all())

    async def _send_all(self) -> None:
        while True:
            raise_if_cancelled()
            queued = await self._queue.get()
            await self._send(queued)

    async def _send(self, queued: _Queued) -> None:
        for number in range(TRIES):
            if number:
                await asyncio.sleep(PAUSE * number)
            try:
                await self._ask(queued.order)
            except OrderRefused as error:
                # Its copy of the records may be older than this replica's.
                self._note(queued.order, f"the gateway refuses it: {error}")
            except nats.errors.NoRespondersError:
                self._note(queued.order, "no gateway takes orders")
            except (nats.errors.Error, OSError, TimeoutError) as error:
                self._note(queued.order, f"no gateway answers ({describe_error(error)})")
            else:
                self._problems.pop(queued.order.request_id, None)
                if queued.on_sent is not None:
                    queued.on_sent()
                return
        self._attempts.failed(queued.order.request_id)

    async def _ask(self, order: InstanceOrder) -> None:
        reply = await self._requests.request(ORDER_SUBJECT, order.to_json(), timeout=ANSWER_TIMEOUT)
        try:
            problem = decode_object(reply.data, "answer to an order").get("error")
        except InvalidRecord as error:
            raise OrderRefused(str(error)) from error
        if problem:
            raise OrderRefused(str(problem))

    def _note(self, order: InstanceOrder, problem: str) -> None:
        known = self._problems.get(order.request_id)
        self._problems[order.request_id] = problem
        self._problems.move_to_end(order.request_id)
        while len(self._problems) > MOST_PROBLEMS:
            self._problems.popitem(last=False)
        if known != problem:
            _log.warning(
                "order %s: %s", order.request_id, problem, extra={"version_id": order.function_version_id}
            )
