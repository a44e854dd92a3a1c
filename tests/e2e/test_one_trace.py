"""One trace from the caller's first word to the model and back: two gateways, the queue, a cold start, a
child process and a batch, in the backend of whoever runs the platform.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nvcf_broker.server import LocalBroker
from tests.support.otlp.receiver import OtlpReceiver
from tests.support.otlp.views import Span
from tests.support.platform.compute_plane import Plane, deployment_path, running_plane_on
from tests.support.platform.gateways import Gateway, Version, control_flags, running_platform
from tests.support.waiting import eventually

FUNCTION = Path(__file__).parent.parent / "functions" / "traced.py"
GATEWAY, AUTOSCALER, AGENT, WORKER = "nvcf-gateway", "nvcf-autoscaler", "nvcf-agent", "traced"


@dataclass
class Caller:
    """A caller that records its own trace."""

    number: int
    trace: str = field(default_factory=lambda: secrets.token_hex(16))
    call: str = field(default_factory=lambda: secrets.token_hex(8))
    poll: str = field(default_factory=lambda: secrets.token_hex(8))
    request_id: str = ""

    def headers(self, span: str) -> dict[str, str]:
        return {"traceparent": f"00-{self.trace}-{span}-01", "tracestate": "mine=1"}


@dataclass
class Setup:
    """The services and the version of the test."""

    plane: Plane
    backend: OtlpReceiver
    gate: Path
    version: Version

    async def first_call(self, caller: Caller, gateway: Gateway) -> None:
        """Make a call that ends with a 202, because the function has not started yet."""
        headers = {
            **self.plane.platform.authorization(),
            **caller.headers(caller.call),
            "NVCF-POLL-SECONDS": "1",
        }
        url = gateway.url + self.version.pexec
        async with self.plane.platform.session.post(
            url, data=str(caller.number), headers=headers
        ) as response:
            assert response.status == 202, await response.text()
            caller.request_id = response.headers["NVCF-REQID"]

    async def poll(self, caller: Caller, gateway: Gateway) -> dict[str, int]:
        """Poll another gateway for the result."""
        headers = {
            **self.plane.platform.authorization(),
            **caller.headers(caller.poll),
            "NVCF-POLL-SECONDS": "60",
        }
        url = f"{gateway.url}/v2/nvcf/pexec/status/{caller.request_id}"
        async with self.plane.platform.session.get(url, headers=headers) as response:
            assert response.status == 200, await response.text()
            return dict(json.loads(await response.read()))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    """All processes send their telemetry to it and record every trace."""
    with OtlpReceiver() as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "1.0")
        yield found


@pytest.fixture
async def setup(tmp_path: Path, backend: OtlpReceiver) -> AsyncIterator[Setup]:
    async with AsyncExitStack() as stack:
        broker = LocalBroker(tmp_path / "broker")
        platform = await stack.enter_async_context(
            running_platform(tmp_path, gateways=2, flags=control_flags(broker), broker=broker)
        )
        plane = await stack.enter_async_context(running_plane_on(platform))
        await plane.start_agent("local", "--worker-telemetry")
        # As root, instances have a user of their own, which sees of pytest's folder what is open to all.
        (tmp_path / "open").mkdir(mode=0o755)
        gate = tmp_path / "open" / "gate"
        process = {
            "python": sys.executable,
            "file": str(FUNCTION),
            "workingDirectory": str(tmp_path),
            "environment": {"PATH": os.environ["PATH"], "GATE": str(gate)},
        }
        function = (await platform.call("POST", "/v2/nvcf/functions", {"name": WORKER, "process": process}))[
            "function"
        ]
        version = Version(function["id"], function["versionId"])
        specification = {"minInstances": 0, "maxInstances": 1, "maxRequestConcurrency": 2}
        await platform.call(
            "POST",
            deployment_path(version),
            {"deploymentSpecifications": [specification], "keepQueued": True},
        )
        yield Setup(plane, backend, gate, version)


async def test_one_trace_covers_the_whole_request(setup: Setup) -> None:
    first, second = Caller(20), Caller(21)
    one, other = setup.plane.platform.gateways
    await asyncio.gather(setup.first_call(first, one), setup.first_call(second, one))
    setup.gate.touch()
    answers = await asyncio.gather(setup.poll(first, other), setup.poll(second, other))
    assert [each["doubled"] for each in answers] == [40, 42]
    assert len({each["pid"] for each in answers}) == 1

    backend = setup.backend
    for caller in (first, second):
        await eventually(
            lambda caller=caller: bool(  # type: ignore[misc]
                backend.spans("deliver", trace=caller.trace) and len(_served(backend, caller)) == 2
            ),
            "both ends of the trace arrived",
        )
    # Each process sends its spans in its own time.
    for name in ("load", "create instance"):
        await eventually(lambda name=name: bool(backend.spans(name)), f"{name} arrived")  # type: ignore[misc]
    for caller in (first, second):
        _check_gateways(setup, caller, one, other)
        _check_worker(setup, caller, answers[0])
    _check_batch(setup, first, second)
    _check_scaling(setup, first, second)
    await _check_metrics(setup, first, second)


def _served(backend: OtlpReceiver, caller: Caller) -> list[Span]:
    found = [each for each in backend.spans(trace=caller.trace, service=GATEWAY) if each.kind == "SERVER"]
    # Workers that deliver by request-attach are part of the trace, and below their own spans.
    return [each for each in found if each.parent_id in (caller.call, caller.poll)]


def _check_gateways(setup: Setup, caller: Caller, one: Gateway, other: Gateway) -> None:
    backend, version = setup.backend, setup.version
    call = backend.span(
        "POST /v2/nvcf/pexec/functions/{function_id}/versions/{version_id}", trace=caller.trace
    )
    assert (call.parent_id, call.kind, call.status) == (caller.call, "SERVER", "UNSET")
    assert call.resource["service.instance.id"] == one.id
    about = {
        "nvcf.request.id": caller.request_id,
        "nvcf.function.id": version.function_id,
        "nvcf.function.version.id": version.id,
        "nvcf.function.name": WORKER,
    }
    assert about.items() <= call.attributes.items()
    assert call.attributes["http.response.status_code"] == 202
    assert call.attributes["http.request.method"] == "POST"
    assert call.attributes["url.path"] == version.pexec
    assert call.attributes["nvcf.outcome"] == "in-progress"
    assert [each.name for each in backend.children(call)] == [
        "authorise",
        "send rq_{region}_{version}",
        "cold start",
    ]
    cold = backend.span("cold start", trace=caller.trace)
    # It continues after the 202 to the caller, until the response of a worker.
    assert cold.end > call.end
    assert cold.attributes["nvcf.request.id"] == caller.request_id

    poll = backend.span("GET /v2/nvcf/pexec/status/{request_id}", trace=caller.trace)
    assert (poll.parent_id, poll.kind) == (caller.poll, "SERVER")
    assert poll.resource["service.instance.id"] == other.id
    assert poll.links_to(call)
    assert about.items() <= poll.attributes.items()
    assert poll.attributes["nvcf.outcome"] == "fulfilled"
    assert {each.name for each in backend.children(poll)} <= {"send rq_polling", "authorise"}


def _check_worker(setup: Setup, caller: Caller, answer: dict[str, int]) -> None:
    backend = setup.backend
    send = backend.span("send rq_{region}_{version}", trace=caller.trace)
    assert send.kind == "PRODUCER"
    assert send.attributes["messaging.system"] == "nats"
    assert send.attributes["messaging.destination.name"] == f"rq_local_{setup.version.id}"
    assert send.attributes["messaging.message.id"] == caller.request_id
    process = backend.span("process", trace=caller.trace)
    assert (process.parent_id, process.kind, process.service) == (send.span_id, "CONSUMER", WORKER)
    assert process.attributes["nvcf.request.id"] == caller.request_id
    assert process.attributes["messaging.message.id"] == caller.request_id
    assert process.attributes["nvcf.request.attempt"] == 1
    assert [each.name for each in process.events] == ["pull"]
    assert {"queue wait", "handler", "deliver"} <= {each.name for each in backend.children(process)}
    waited = backend.span("queue wait", trace=caller.trace)
    # From the call to the pull: the whole cold start.
    assert abs(waited.start - send.start) < 1e9
    assert waited.end == process.start
    handler, think = backend.span("handler", trace=caller.trace), backend.span("think", trace=caller.trace)
    assert handler.parent_id == process.span_id
    assert handler.attributes["nvcf.outcome"] == "fulfilled"
    # The handler runs in a child process and joins the trace without set-up.
    assert think.parent_id == handler.span_id
    assert (handler.resource["process.pid"], think.resource["process.pid"]) == (
        answer["parent"],
        answer["pid"],
    )
    assert handler.resource["nvcf.instance.id"] == think.resource["nvcf.instance.id"]
    (log,) = backend.logs(f"thinking of {caller.number}")
    assert (log.trace_id, log.span_id) == (caller.trace, think.span_id)
    assert log.attributes["request_id" if "request_id" in log.attributes else "nvcf.request.id"]


def _check_batch(setup: Setup, first: Caller, second: Caller) -> None:
    backend = setup.backend
    (batch,) = [each for caller in (first, second) for each in backend.spans("batch", trace=caller.trace)]
    assert batch.attributes["nvcf.batch.size"] == 2
    waits = [backend.span("batch wait", trace=caller.trace) for caller in (first, second)]
    thinks = [backend.span("think", trace=caller.trace) for caller in (first, second)]
    for wait, think in zip(waits, thinks, strict=True):
        assert wait.parent_id == think.span_id
        assert wait.links_to(batch)
        assert batch.links_to(think)
    assert batch.parent_id in {each.span_id for each in thinks}
    (forward,) = backend.spans("forward")
    assert forward.parent_id == batch.span_id


def _check_scaling(setup: Setup, first: Caller, second: Caller) -> None:
    backend, version = setup.backend, setup.version
    ups = backend.spans("scaling decision", service=AUTOSCALER, nvcf_direction="up")
    (decision,) = [each for each in ups if each.attributes["nvcf.function.version.id"] == version.id]
    assert decision.parent_id == ""
    assert decision.attributes["nvcf.scaling.desired"] == 1
    assert decision.attributes["nvcf.reason"].startswith("1 instance: ")
    sends = [backend.span("send rq_{region}_{version}", trace=caller.trace) for caller in (first, second)]
    assert any(decision.links_to(send) for send in sends)

    create = backend.span("create instance", trace=decision.trace_id)
    assert (create.parent_id, create.service, create.status) == (decision.span_id, AGENT, "UNSET")
    start = backend.span("start instance", trace=decision.trace_id)
    assert (start.parent_id, start.service) == (create.span_id, WORKER)
    assert create.attributes["nvcf.instance.id"] == start.attributes["nvcf.instance.id"]
    load = backend.span("load", trace=decision.trace_id)
    assert load.parent_id == start.span_id
    assert create.start <= start.start <= load.start <= load.end

    processes = [backend.span("process", trace=caller.trace) for caller in (first, second)]
    linked = [each for each in processes if each.links]
    # The instance's first request names the cold start.
    assert len(linked) == 1
    assert linked[0].links_to(decision)
    assert linked[0].links_to(start)


async def _check_metrics(setup: Setup, first: Caller, second: Caller) -> None:
    backend = setup.backend

    def outcomes() -> dict[tuple[str, str], int]:
        return {
            (point.attributes["nvcf.route"], point.attributes["nvcf.outcome"]): point.count
            for point in backend.series("nvcf.invocation.duration", service=GATEWAY)
        }

    expected = {("pexec", "in-progress"): 2, ("poll", "fulfilled"): 2}
    await eventually(lambda: outcomes() == expected, "figures of both gateways")
    cold = "nvcf.invocation.cold_start.duration"
    await eventually(lambda: backend.total(cold) == 2, "figures of cold starts")
    assert backend.total("nvcf.invocation.cold_starts", service=GATEWAY) == 2
    traces = {exemplar.trace_id for point in backend.points(cold) for exemplar in point.exemplars}
    assert traces
    assert traces <= {first.trace, second.trace}
    for name, service in (("nvcf.instance.start.duration", AGENT), ("nvcf.wake_up.duration", AUTOSCALER)):
        await eventually(lambda name=name, service=service: backend.total(name, service=service) == 1, name)  # type: ignore[misc]
