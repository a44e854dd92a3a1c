"""`nvcf_worker.triton` on a real server: types, streams, sequences, cancellation, JSON, blocking calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, ClassVar

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from nvcf_worker import InvalidInput, SyncRequest, TestClient
from nvcf_worker.errors import HTTPError
from nvcf_worker.run import slot_limits
from nvcf_worker.triton import Triton, TritonUnavailable
from tests.support.waiting import eventually
from tests.triton.server import TritonServer, running_server

VALUES: dict[str, Any] = {
    "BOOL": np.array([[True, False]]),
    **{name: np.array([[1, 2], [3, 4]], name.lower()) for name in ("UINT8", "UINT16", "UINT32", "UINT64")},
    **{name: np.array([[-1, 2]], name.lower()) for name in ("INT8", "INT16", "INT32", "INT64")},
    "FP16": np.array([[1.5]], np.float16),
    "FP32": np.zeros((0, 3), np.float32),
    "FP64": np.array([[1e300]]),
    "BYTES": np.array([[b"\x00\xff", b""]], np.object_),
    "BF16": np.array([[1.5, -2.0]], np.float32),
}


@pytest.fixture(params=["grpc", "http"])
async def triton(request: pytest.FixtureRequest, triton_server: TritonServer) -> AsyncIterator[Triton]:
    """Return a connection by each protocol."""
    address = triton_server.grpc if request.param == "grpc" else triton_server.http
    async with Triton(f"{request.param}://{address}") as triton:
        yield triton


@pytest.fixture
async def by_grpc(triton_server: TritonServer) -> AsyncIterator[Triton]:
    """Return a connection by gRPC."""
    async with Triton(f"grpc://{triton_server.grpc}") as triton:
        yield triton


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def patient_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TritonServer]:
    """A server with the model `patient`."""
    async with running_server(tmp_path_factory.mktemp("triton") / "log", models=("patient",)) as server:
        yield server


async def test_all_types_come_back_as_they_were(triton: Triton) -> None:
    outputs = await triton.model("identity")({f"INPUT_{name}": value for name, value in VALUES.items()})

    for name, value in VALUES.items():
        found = outputs[f"OUTPUT_{name}"]
        assert found.dtype == value.dtype, name
        assert found.tolist() == value.tolist(), name
        assert found.shape == value.shape, name


async def test_lists_and_numbers_are_checked_before_they_are_sent(triton: Triton) -> None:
    model = triton.model("add_sub")

    outputs = await model({"INPUT0": [1, 2, 3, 4], "INPUT1": [[1, 1, 1, 0.5]]})
    assert outputs["OUTPUT0"].tolist() == [[2, 3, 4, 4.5]]
    with pytest.raises(InvalidInput, match=r"INPUT1: has the shape \[1, 3\]; expected FP32 \[any, 4\]"):
        await model({"INPUT0": [1, 2, 3, 4], "INPUT1": [1, 2, 3]})


async def test_calls_at_the_same_time_share_a_batch(triton: Triton) -> None:
    model = triton.model("batched")

    found = await asyncio.gather(*(model({"X": [number]}) for number in range(16)))

    assert [each["Y"].item() for each in found] == list(range(16))
    assert max(each["SIZE"].item() for each in found) > 1


async def test_a_model_that_is_not_there_is_tried_elsewhere(triton: Triton) -> None:
    with pytest.raises(TritonUnavailable, match="unknown model"):
        await triton.model("nothing")(1)


async def test_a_decoupled_model_is_a_stream(by_grpc: Triton) -> None:
    model = by_grpc.model("repeat")

    assert [part["OUT"].item() async for part in model.stream({"IN": [3, 1, 2]})] == [3, 1, 2]
    assert [part async for part in model.stream({"IN": []})] == []
    with pytest.raises(TypeError, match=r"model\.stream"):
        await model({"IN": [1]})
    single = by_grpc.model("add_sub").stream({"INPUT0": [1] * 4, "INPUT1": [1] * 4})
    assert [part["OUTPUT0"].tolist() async for part in single] == [[[2] * 4]]


async def test_a_stream_that_is_left_is_cancelled_in_triton(
    by_grpc: Triton, triton_server: TritonServer
) -> None:
    before = triton_server.child.text().count("repeat: cancelled")
    endless = by_grpc.model("repeat").stream({"IN": list(range(100_000)), "DELAY": [0.01]})

    async with aclosing(endless) as parts:  # type: ignore[type-var] # it is a generator
        async for part in parts:
            if part["OUT"].item() == 2:
                break

    await eventually(
        lambda: triton_server.child.text().count("repeat: cancelled") > before, "Triton learns of it"
    )


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_priorities_time_outs_and_cancellation_reach_tritons_queue(
    protocol: str, patient_server: TritonServer
) -> None:
    async with Triton(f"{protocol}://{getattr(patient_server, protocol)}") as triton:
        model = triton.model("patient")
        begun = patient_server.child.text().count("patient: begins")
        order: list[str] = []

        async def call(name: str, **options: Any) -> None:
            await model([0.2], **options)
            order.append(name)

        running = asyncio.create_task(model([3.0]))
        await eventually(lambda: patient_server.child.text().count("patient: begins") > begun, "one runs")
        waiting = [asyncio.create_task(call("normal"))]
        await eventually(lambda: _pending(patient_server, 1), "one waits")
        leaving = asyncio.create_task(call("left"))
        late = asyncio.create_task(call("late", timeout=0.05))
        of_request = asyncio.create_task(call("late", request=_Leaving()))
        waiting.append(asyncio.create_task(call("urgent", priority=1)))
        await eventually(lambda: _pending(patient_server, 5), "they wait")
        leaving.cancel()
        await asyncio.gather(running, *waiting)

        with pytest.raises(HTTPError) as caught:
            await late
        assert caught.value.status == 504
        with pytest.raises(TritonUnavailable):
            await of_request
        assert order == ["urgent", "normal"]
        await model([0.0])
        # The one that runs, urgent, normal, and the last: the others never began.
        ran = patient_server.child.text().count("patient: begins") - begun
        # Triton does not learn of an HTTP caller that leaves while its request waits.
        assert ran == (4 if protocol == "grpc" else 5)


async def test_a_sequence_keeps_its_state(by_grpc: Triton) -> None:
    model = by_grpc.model("running_sum")

    async def sums(start: int) -> list[int]:
        async with model.sequence() as sequence:
            found = [await sequence([start]), await sequence([10]), await sequence.last([100])]
        with pytest.raises(RuntimeError, match="is over"):
            await sequence([1])
        return [each["OUT"].item() for each in found]

    assert await sums(1) == [1, 11, 111]
    assert list(await asyncio.gather(sums(2), sums(3))) == [[2, 12, 112], [3, 13, 113]]
    with pytest.raises(TypeError, match="no sequence batching"):
        await by_grpc.model("add_sub").sequence()({"INPUT0": [1] * 4, "INPUT1": [1] * 4})


async def test_a_server_that_dies_sends_requests_back_to_the_queue(own_triton_server: TritonServer) -> None:
    async with Triton(f"grpc://{own_triton_server.grpc}") as triton:
        transport = triton._connected().transport
        await _load(own_triton_server, "hang", "running_sum")
        model, stateful = triton.model("hang"), triton.model("running_sum")
        sequence = stateful.sequence()
        await sequence([1])
        running = asyncio.create_task(model({"SECONDS": [600.0]}))
        await eventually(lambda: "hang: sleeps" in own_triton_server.child.text(), "it runs")

        own_triton_server.child.process.kill()

        with pytest.raises(TritonUnavailable):
            await running
        with pytest.raises(HTTPError, match="the sequence was lost") as lost:
            await sequence([2])
        assert lost.value.status == 503
        assert not await transport.ready()


class _Slots:
    """Stands for a worker: notes the limits of its slots."""

    in_flight = 0

    def __init__(self) -> None:
        self.limits: list[int] = []

    def limit_slots(self, source: str, limit: int) -> None:
        assert source == "triton batched"
        self.limits.append(limit)


async def test_no_requests_are_taken_while_the_model_is_away(
    own_triton_server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _load(own_triton_server, "batched")
    worker = _Slots()
    monkeypatch.setattr(slot_limits, "_worker", worker)
    async with Triton(f"grpc://{own_triton_server.grpc}") as triton:
        await triton.model("batched").load()
        assert worker.limits == [32]

        await _load(own_triton_server, "batched", change="unload")
        await eventually(lambda: worker.limits[-1] == 0, "an unloaded model is away")
        await _load(own_triton_server, "batched")
        await eventually(lambda: worker.limits[-1] == 32, "it is back")
        assert triton.unreachable_since is None
        own_triton_server.child.process.kill()
        await eventually(lambda: worker.limits[-1] == 0, "a server that has died is away")
        assert triton.unreachable_since is not None


def test_plain_handlers_wait_on_their_threads(triton_server: TritonServer) -> None:
    triton = Triton(f"grpc://{triton_server.grpc}")
    add, repeat, total = (triton.model(name) for name in ("add_sub", "repeat", "running_sum"))

    def handler(request: SyncRequest) -> Any:
        numbers = request.json()
        added = add.blocking({"INPUT0": numbers, "INPUT1": numbers}, request=request)["OUTPUT0"]
        parts = [part["OUT"].item() for part in repeat.blocking.stream({"IN": numbers})]
        with total.blocking.sequence() as sequence:
            sums = [sequence([number])["OUT"].item() for number in numbers[:-1]]
            sums.append(sequence.last([numbers[-1]])["OUT"].item())
        return {"added": added, "parts": parts, "sums": sums}

    with TestClient(handler) as client:
        assert client([1, 2, 3, 4]) == {
            "added": [[2.0, 4.0, 6.0, 8.0]],
            "parts": [1, 2, 3, 4],
            "sums": [1, 3, 6, 10],
        }


def test_a_caller_that_leaves_ends_the_blocking_call_and_triton_learns_of_it(
    triton_server: TritonServer,
) -> None:
    model = Triton(f"grpc://{triton_server.grpc}").model("repeat")
    before = triton_server.child.text().count("repeat: cancelled")

    def handler(request: SyncRequest) -> Any:
        for part in model.blocking.stream({"IN": list(range(100_000)), "DELAY": [0.01]}):
            yield part["OUT"]

    with TestClient(handler) as client:
        with client.stream() as stream:
            next(iter(stream))
        asyncio.run(
            eventually(
                lambda: triton_server.child.text().count("repeat: cancelled") > before, "Triton learns of it"
            )
        )


def test_a_handler_takes_and_gives_json(triton_server: TritonServer) -> None:
    with TestClient(Triton(f"grpc://{triton_server.grpc}").handler("add_sub")) as client:
        assert client({"INPUT0": [1, 2, 3, 4], "INPUT1": [1, 1, 1, 1]}) == {
            "OUTPUT0": [2, 3, 4, 5],
            "OUTPUT1": [0, 1, 2, 3],
        }
        batch = {"INPUT0": [[1, 2, 3, 4]] * 2, "INPUT1": [[0, 0, 0, 0]] * 2}
        assert client(batch)["OUTPUT0"] == batch["INPUT0"]

        refused = client.post("/anything", json={"INPUT0": [1, 2]})
        assert (refused.status, refused.json()["errors"]) == (
            422,
            [
                {"field": "INPUT0", "message": "has the shape [1, 2]; expected FP32 [any, 4]"},
                {"field": "INPUT1", "message": "missing; expected FP32 [any, 4]"},
            ],
        )
        assert client.post(data=b"{").status == 400
        assert client.get("/").status == 405
        [path] = client.get("/openapi.json").json()["paths"]
        assert path == "/"


def test_a_handler_of_a_decoupled_model_streams_lines(triton_server: TritonServer) -> None:
    with TestClient(Triton(f"grpc://{triton_server.grpc}").handler("repeat")) as client:
        assert client({"IN": [1, 2]}) == [{"OUT": 1}, {"OUT": 2}]


async def test_the_trace_context_goes_to_triton(by_grpc: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    model = by_grpc.model("add_sub")
    await model.load()
    transport = by_grpc._connected().transport
    seen: list[Any] = []
    infer = transport.infer

    async def noted(call: Any) -> Any:
        seen.append(call)
        return await infer(call)

    monkeypatch.setattr(transport, "infer", noted)
    span = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1)))
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        await model({"INPUT0": [1] * 4, "INPUT1": [1] * 4})
    finally:
        otel_context.detach(token)

    assert seen[0].headers["traceparent"] == f"00-{1:032x}-{2:016x}-01"


class _Leaving:
    """A request whose caller stops waiting soon."""

    id = "request-1"
    time_left = 0.05
    trace_context: ClassVar[dict[str, str]] = {}


async def _pending(server: TritonServer, count: int) -> bool:
    async with aiohttp.ClientSession() as session, session.get(server.metrics) as response:
        text = await response.text()
    [line] = [line for line in text.splitlines() if line.startswith("nv_inference_pending_request_count{")]
    return int(float(line.split()[-1])) >= count


async def _load(server: TritonServer, *models: str, change: str = "load") -> None:
    async with aiohttp.ClientSession() as session:
        for model in models:
            url = f"http://{server.http}/v2/repository/models/{model}/{change}"
            async with session.post(url) as response:
                assert response.status == 200, await response.text()
