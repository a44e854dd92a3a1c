"""The end of a request, whatever happened on its way."""

from __future__ import annotations

from typing import Any

import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.message import parse_work
from nvcf_worker.queue.delivery import ActiveRequest
from nvcf_worker.queue.inflight import InFlight
from nvcf_worker.queue.puller import ConsumerLimits
from nvcf_worker.runner import Runner
from nvcf_worker.telemetry.observer import Untold


class Broken:
    """Telemetry that stumbles, e.g. over a span processor of the function's own."""

    def __init__(self, where: str) -> None:
        self._where = where

    def request(self, active: ActiveRequest) -> Any:
        """One begins."""
        if self._where == "begin":
            raise ValueError("telemetry")
        told: Any = Untold(active)
        if self._where == "end":
            told.end = self._end
        return told

    def _end(self) -> None:
        raise ValueError("telemetry")


class Sessions:
    """Sessions that are over at once."""

    ran = 0

    async def run(self, active: ActiveRequest) -> None:
        """One."""
        self.ran += 1


@pytest.mark.parametrize("where", ["begin", "end"])
async def test_telemetry_that_fails_costs_neither_the_request_nor_its_slot(where: str) -> None:
    """It would be told to the broker as in work for ever, and nobody else would get it."""
    message = nvcf_pb2.WorkerInvokeFunctionRequest(requestId=new_id())
    http1 = message.statefulConfig.connectionConfigs.add().http1Config
    http1.proxyURI, http1.proxyAuthorizationToken = "http://gateway:1", "token"
    inflight, sessions, freed = InFlight(None), Sessions(), list[ActiveRequest]()
    active = inflight.add(
        parse_work(message.SerializeToString(), "ack", None, region="r", now=0.0), ConsumerLimits()
    )
    nothing: Any = None
    tunnels: Any = sessions
    runner = Runner(
        nothing, nothing, nothing, inflight, nothing, freed.append, tunnels, Broken(where)
    )  # fmt: skip
    await runner.run(active)
    assert sessions.ran == 1
    assert freed == [active]
    assert len(inflight) == 0
