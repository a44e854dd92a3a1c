"""The end of a request, whatever happened on its way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.dispatcher import Dispatcher
from nvcf_worker.exchange.exchanges import Exchanges
from nvcf_worker.function.cancellation import CancelScope
from nvcf_worker.message import Work
from nvcf_worker.queue.inflight import InFlight
from nvcf_worker.queue.planner import Slots
from nvcf_worker.queue.puller import ConsumerLimits
from nvcf_worker.runner import Runner
from nvcf_worker.telemetry.observer import NoopObserver


class Broken:
    """Telemetry that stumbles, e.g. over a span processor of the function's own."""

    def __init__(self, where: str) -> None:
        self._where = where

    def request(self, work: Work, scope: CancelScope) -> Any:
        """One begins."""
        if self._where == "begin":
            raise ValueError("telemetry")
        observer: Any = NoopObserver(work.trace)
        if self._where == "end":
            observer.end = self._end
        return observer

    def _end(self) -> None:
        raise ValueError("telemetry")


class Sessions:
    """Sessions that are over at once."""

    ran = 0

    async def run(self, work: Work, scope: CancelScope) -> None:
        """One."""
        self.ran += 1


@pytest.mark.parametrize("where", ["begin", "end"])
async def test_telemetry_that_fails_costs_neither_the_request_nor_its_slot(where: str) -> None:
    """It would be told to the broker as in work for ever, and nobody else would get it."""
    message = nvcf_pb2.WorkerInvokeFunctionRequest(requestId=new_id())
    http1 = message.statefulConfig.connectionConfigs.add().http1Config
    http1.proxyURI, http1.proxyAuthorizationToken = "http://gateway:1", "token"
    inflight, sessions, slots = InFlight(None), Sessions(), Slots(1, lambda: None)
    nothing: Any = None
    tunnels: Any = sessions
    runner = Runner(nothing, nothing, nothing, nothing, tunnels, Broken(where))
    dispatcher = Dispatcher(inflight, slots, Exchanges(nothing), tunnels, runner.run)
    sent: Any = SimpleNamespace(data=message.SerializeToString(), reply="ack", headers=None, subject="rq")
    await dispatcher.receive(sent, "r", ConsumerLimits())
    assert (len(inflight), slots.busy) == (1, 1)
    await dispatcher.finish(5.0)
    assert sessions.ran == 1
    assert slots.busy == 0
    assert len(inflight) == 0
