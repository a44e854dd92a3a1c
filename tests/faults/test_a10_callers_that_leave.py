"""A keyed caller that leaves while its publish is unacknowledged: the call goes on, or its key is free.

A neighbour of A10: nobody who repeats the call waits for a key that stands for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nvcf_broker.errors import BrokerError, BrokerUnavailableError
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import NotStored, QueueFull
from nvcf_gateway.exchange.bodies import empty_body
from nvcf_gateway.exchange.call import Call
from nvcf_gateway.exchange.pending import PendingRequests
from nvcf_gateway.exchange.sinks import CollectSink
from nvcf_gateway.invocation.waiting import CallRunner
from nvcf_gateway.telemetry.enqueue_span import EnqueueTelemetry
from nvcf_gateway.telemetry.metrics import GatewayMetrics
from nvcf_proto.h1 import RequestHead


class Parts:
    """Stand-ins for the queue, whose acknowledgement waits, for demand and for what is kept."""

    def __init__(self, failure: BrokerError | None) -> None:
        self.failure = failure
        self.sent, self.acknowledge = asyncio.Event(), asyncio.Event()
        self.removed: list[int | None] = []
        self.released = 0
        self.tracking = None

    async def publish(self, *of: Any, **options: Any) -> int:
        self.sent.set()
        await self.acknowledge.wait()
        if self.failure is not None:
            raise self.failure
        return 7

    async def cancel(self, *of: Any) -> None:
        pass

    async def remove(self, version_id: str, request_id: str, sequence: int | None) -> None:
        self.removed.append(sequence)

    @contextlib.contextmanager
    def counted(self, version_id: str) -> Iterator[Any]:
        yield SimpleNamespace(answered=False, failed=False)

    async def subject(self, *of: Any) -> str | None:
        return None

    async def queued(self, *of: Any) -> bool:
        return False

    def kept_later(self, call: Call) -> Any:
        return SimpleNamespace(sink=lambda: CollectSink(100))

    async def keep(self, *of: Any, told: bool) -> bool:
        return True

    async def release(self) -> None:
        self.released += 1


@pytest.mark.parametrize(
    ("failure", "removed", "released", "taken"),
    [
        (None, [], 0, True),
        (QueueFull("full"), [None], 1, False),
        (NotStored("refused"), [None], 1, False),
        (BrokerUnavailableError("nobody knows"), [], 0, True),
    ],
)
async def test_a_caller_that_leaves_before_the_acknowledgement(
    failure: BrokerError | None, removed: list[int | None], released: int, taken: bool
) -> None:
    parts: Any = Parts(failure)
    pending = PendingRequests()
    config = GatewayConfig(("", 0), ("", 0), "", Path("key"))
    version = SimpleNamespace(id="v", function_id="f")
    caller = SimpleNamespace(nca_id="a", subject="s")
    call = Call(
        cast(Any, caller), cast(Any, version), RequestHead("POST", "/", []), empty_body(), 5, "q",
        time.time(),
        keep_queued=True, keyed=True,
    )  # fmt: skip
    async with BackgroundTasks() as owner:
        telemetry = EnqueueTelemetry(GatewayMetrics(), "local")
        runner = CallRunner(config, parts, str, parts, pending, parts, owner, parts, telemetry)
        task = asyncio.create_task(runner.run(call, CollectSink(100), {}, parts.release))
        sent = asyncio.create_task(parts.sent.wait())
        await asyncio.wait({task, sent}, return_when=asyncio.FIRST_COMPLETED)
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.wait({task})
        assert pending.detached("q") is not None, "a worker that has the request is still welcome"
        parts.acknowledge.set()
    assert (parts.removed, parts.released) == (removed, released)
    assert (pending.detached("q") is not None) == taken
