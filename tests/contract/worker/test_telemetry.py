"""What a worker exports to an OTLP backend and Prometheus, with a real receiver of either protocol."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nvcf_broker.process import free_port
from nvcf_otel import compatible, instruments, spans
from nvcf_otel.instrument import Kind
from nvcf_proto.ids import new_id
from tests.support.otlp.receiver import Mode, OtlpReceiver
from tests.support.otlp.views import Span
from tests.support.peers.calls import Answer
from tests.support.peers.gateway import PeerGateway
from tests.support.platform.nats_server import NatsServer
from tests.support.platform.workers import WorkerProcess
from tests.support.waiting import eventually

FUNCTION = Path(__file__).parent.parent.parent / "functions" / "instrumented.py"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{CALLER}-01"

Start = Callable[..., WorkerProcess]


@pytest.fixture
def backend() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
async def start(gateway: PeerGateway, broker: NatsServer, tmp_path: Path) -> AsyncIterator[Start]:
    started: list[WorkerProcess] = []

    def begin(**environment: str) -> WorkerProcess:
        process = WorkerProcess(
            str(FUNCTION), gateway, broker, tmp_path, instance=f"instance-{len(started)}",
            environment={"FUNCTION_NAME": "test-function", "NCA_ID": "account-1", **environment},
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()


async def ask(gateway: PeerGateway, path: str, body: bytes = b"{}", **options: Any) -> Answer:
    async with asyncio.timeout(30):
        return await (await gateway.invoke(body, path=path, **options)).answer()


async def one(backend: OtlpReceiver, name: str, **wanted: Any) -> Span:
    await eventually(lambda: bool(backend.spans(name, **wanted)), f"span {name}\n{backend.summary()}")
    return backend.spans(name, **wanted)[0]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_request_is_followed_into_the_handler(
    gateway: PeerGateway, start: Start, backend: OtlpReceiver, protocol: str, isolation: str
) -> None:
    worker = start(ISOLATION=isolation, **backend.environment(protocol))
    await worker.ready()
    answer = await ask(gateway, "/plain", trace=SAMPLED)
    process = await one(backend, "process")
    assert (process.trace_id, process.parent_id, process.kind) == (TRACE, CALLER, "CONSUMER")
    assert process.attributes["messaging.system"] == "nats"
    assert process.attributes["nvcf.function.version.id"] == gateway.version_id
    assert process.attributes["nvcf.request.attempt"] == 1
    assert process.attributes["nvcf.outcome"] == "fulfilled"
    assert [event.name for event in process.events] == ["pull"]
    handler = await one(backend, "handler")
    for name in ("queue wait", "handler", "deliver"):
        assert backend.parent(await one(backend, name)) == process, name
    # The function's own spans and logs join without any set-up, whichever process it runs in.
    think = await one(backend, "think")
    assert backend.parent(think) == handler
    await eventually(lambda: bool(backend.logs("password")), "log of the function")
    record = backend.logs("password")[0]
    assert record.body == "password=[redacted]"
    assert (record.trace_id, record.span_id) == (TRACE, think.span_id)
    assert record.attributes["nvcf.request.id"] == process.attributes["nvcf.request.id"]
    for resource in (record.resource, process.resource, think.resource):
        assert resource["nvcf.function.id"] == gateway.function_id
        assert resource["nvcf.function.version.id"] == gateway.version_id
        assert resource["nvcf.instance.id"] == "instance-0"
        assert resource["service.name"] == "test-function"
    # What goes on from the function is below the handler, too.
    assert answer.json()["traceparent"] == f"00-{TRACE}-{handler.span_id}-01"
    if isolation == "thread":
        assert handler.attributes["gen_ai.usage.input_tokens"] == 7
    await eventually(lambda: len(backend.series("gen_ai.client.token.usage")) == 2, "tokens")
    used = {
        each.attributes["gen_ai.token.type"]: each for each in backend.series("gen_ai.client.token.usage")
    }
    assert {kind: each.sum for kind, each in used.items()} == {"input": 7, "output": 3}
    assert used["input"].exemplars[0].trace_id == TRACE
    worker.send_signal(signal.SIGTERM)
    assert await worker.exit_code() == 0


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_batch_links_to_its_members_and_they_to_it(
    gateway: PeerGateway, start: Start, backend: OtlpReceiver, isolation: str
) -> None:
    worker = start(ISOLATION=isolation, **backend.environment())
    await worker.ready()
    other = SAMPLED.replace(TRACE, TRACE[::-1])
    answers = await asyncio.gather(
        ask(gateway, "/batched", b"1", trace=SAMPLED), ask(gateway, "/batched", b"2", trace=other)
    )
    assert [answer.json() for answer in answers] == [2, 4]
    batch = await one(backend, "batch")
    await eventually(lambda: len(backend.spans("batch wait")) == 2, "waits")
    await eventually(lambda: len(backend.spans("handler")) == 2, "handlers")
    handlers = backend.spans("handler")
    assert {span.trace_id for span in handlers} == {TRACE, TRACE[::-1]}
    assert all(batch.links_to(span) for span in handlers)
    for wait in backend.spans("batch wait"):
        assert wait.links_to(batch)
        assert backend.parent(wait) in handlers
    assert backend.parent(await one(backend, "model")) == batch
    await eventually(lambda: bool(backend.logs("batch of 2")), "log of the batch")
    assert backend.logs("batch of 2")[0].trace_id == batch.trace_id
    assert "nvcf.request.id" not in backend.logs("batch of 2")[0].attributes
    await eventually(lambda: bool(backend.series("nvcf.batch.size")), "sizes")
    (sizes,) = backend.series("nvcf.batch.size")
    assert (sizes.count, sizes.sum) == (1, 2)
    assert sizes.attributes["nvcf.function.version.id"] == gateway.version_id


@pytest.mark.parametrize("path", ["/stream", "/generator"])
@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_stream_is_told_to_its_last_item(
    gateway: PeerGateway, start: Start, backend: OtlpReceiver, isolation: str, path: str
) -> None:
    worker = start(ISOLATION=isolation, **backend.environment())
    await worker.ready()
    assert (await ask(gateway, path, trace=SAMPLED)).body == b"0\n1\n2\n"
    process = await one(backend, "process")
    stream, handler = await one(backend, "stream"), await one(backend, "handler")
    assert backend.parent(stream) == process
    assert [event.name for event in handler.events] == ["first item"]
    assert handler.end >= stream.start
    await eventually(lambda: len(backend.spans("item")) == 3, "spans of the items")
    assert all(backend.parent(span) == handler for span in backend.spans("item"))
    await eventually(lambda: bool(backend.series("nvcf.stream.first_item.duration")), "first items")
    await eventually(lambda: backend.total("nvcf.stream.items") >= 1, "items")


async def test_what_fails_is_told_as_an_error(
    gateway: PeerGateway, start: Start, backend: OtlpReceiver
) -> None:
    worker = start(**backend.environment())
    await worker.ready()
    assert (await ask(gateway, "/fails", trace=SAMPLED)).status == 500
    process, handler = await one(backend, "process"), await one(backend, "handler")
    assert (process.status, process.attributes["error.type"]) == ("ERROR", "RuntimeError")
    assert handler.status == "ERROR"
    assert handler.events[0].attributes["exception.message"] == "no luck"
    await eventually(
        lambda: backend.total("nvcf.handler.duration", **{"nvcf.outcome": "errored"}) == 1, "metrics"
    )


async def test_an_instance_reports_its_start_and_the_first_request_links_to_it(
    gateway: PeerGateway, start: Start, backend: OtlpReceiver
) -> None:
    scaling = f"00-{new_id().replace('-', '')}-00f067aa0ba902b8-01"
    worker = start(
        TRACEPARENT=SAMPLED, NVCF_SCALING_TRACEPARENT=scaling, ISOLATION="process", **backend.environment()
    )
    await worker.ready()
    await ask(gateway, "/plain", trace=f"00-{TRACE[::-1]}-{CALLER}-01")
    await ask(gateway, "/plain", trace=f"00-{TRACE[::-1]}-{CALLER}-01")
    begun = await one(backend, "start instance")
    assert (begun.trace_id, begun.parent_id) == (TRACE, CALLER)
    assert all(backend.parent(span) == begun for span in backend.spans("load"))
    assert backend.ancestors(await one(backend, "read weights"))[-1] == "start instance"
    await eventually(lambda: len(backend.spans("process")) == 2, "both requests")
    first, second = sorted(backend.spans("process"), key=lambda span: span.start)
    assert first.attributes["faas.coldstart"] is True
    assert first.links_to(begun)
    assert scaling[3:35] in {link.trace_id for link in first.links}
    assert not second.links


async def test_unsampled_requests_make_no_spans_but_metrics(
    gateway: PeerGateway, start: Start, backend: OtlpReceiver
) -> None:
    worker = start(**backend.environment())
    await worker.ready()
    for _ in range(3):
        answer = await ask(gateway, "/plain", trace=f"00-{TRACE}-{CALLER}-00")
        assert answer.json()["traceparent"] == f"00-{TRACE}-{CALLER}-00"
    await eventually(lambda: backend.total("nvcf.handler.duration") == 3, "metrics")
    worker.send_signal(signal.SIGTERM)
    assert await worker.exit_code() == 0
    assert not [span for span in backend.spans() if span.trace_id == TRACE]


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_request_without_a_trace_is_recorded_as_a_whole_or_not_at_all(
    gateway: PeerGateway, start: Start, backend: OtlpReceiver, isolation: str
) -> None:
    worker = start(ISOLATION=isolation, OTEL_TRACES_SAMPLER_ARG="0.5", **backend.environment())
    await worker.ready()
    recorded = set()
    for _ in range(16):
        call = await gateway.invoke(b"{}", path="/plain")
        trace_id = f"{spans.trace_id_of(call.request_id):032x}"
        async with asyncio.timeout(30):
            told = (await call.answer()).json()["traceparent"]
        # The gateway knows from the id, too, and says nothing of a trace that is not recorded.
        sampled = spans.trace_id_of(call.request_id) & (1 << 64) - 1 < 1 << 63
        assert (told[3:35], int(told[-2:], 16) & 1) == (trace_id, sampled)
        if sampled:
            recorded.add(trace_id)
    worker.send_signal(signal.SIGTERM)
    assert await worker.exit_code() == 0
    assert {span.trace_id for span in backend.spans("process")} == recorded
    assert {span.trace_id for span in backend.spans("think")} == recorded


async def metrics(port: int, accept: str = "") -> str:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.get("/metrics", headers={"Accept": accept} if accept else {}) as response:
            assert response.status == 200
            return await response.text()


async def test_prometheus_finds_own_and_compatible_metrics_with_exemplars(
    gateway: PeerGateway, start: Start, backend: OtlpReceiver
) -> None:
    port, health = free_port(), free_port()
    worker = start(NVCF_METRICS_ADDRESS=f"127.0.0.1:{port}", HEALTH_PORT=str(health), **backend.environment())
    await worker.ready()
    await ask(gateway, "/plain", trace=SAMPLED)
    await ask(gateway, "/fails")
    await eventually(lambda: len(backend.spans("process")) == 1, "the request")
    text = await metrics(port)
    ids = (
        f'function_id="{gateway.function_id}",function_version_id="{gateway.version_id}",'
        'instance_id="instance-0",nca_id="account-1"'
    )
    for prefix in compatible.PREFIXES:
        assert f"{prefix}_request_total{{{ids}}} 2.0" in text
        assert f"{prefix}_worker_thread_count_total{{{ids}}} 4.0" in text
        assert f"{prefix}_request_latency_seconds_count{{{ids}}} 2.0" in text
        assert f'{prefix}_response_total{{error_code="0",{ids}}} 2.0' in text
        assert f"{prefix}_worker_thread_busy_seconds_total{{{ids}}}" in text
    # Those that need a sidecar's server or a second region are the only ones that have no value here.
    absent = {
        each.prometheus_name
        for each in compatible.ALL
        if each.kind is not Kind.HISTOGRAM and f"\n{each.prometheus_name}{{" not in text
    }
    assert {name.removeprefix("nvcf_worker_service_").removeprefix("nvcf_") for name in absent} == {
        "healthcheck_total", "nats_connected_sec_regions",
    }  # fmt: skip
    version = f'nvcf_function_id="{gateway.function_id}",nvcf_function_version_id="{gateway.version_id}"'
    assert f"nvcf_worker_slots{{{version}}} 4.0" in text
    assert f"process_memory_usage_bytes{{{version}}}" in text
    assert f"nvcf_event_loop_lag_seconds{{{version}}}" in text
    assert f"{instruments.BROKER_CONNECTED.prometheus_name}{{{version}}} 1.0" in text
    assert "span_id" not in text
    openmetrics = await metrics(port, "application/openmetrics-text; version=1.0.0")
    assert f'trace_id="{TRACE}"' in openmetrics
    assert "nvcf_handler_duration_seconds_bucket" in await metrics(health)


async def test_without_telemetry_nothing_is_set_up(gateway: PeerGateway, start: Start) -> None:
    health = free_port()
    worker = start(HEALTH_PORT=str(health))
    await worker.ready()
    answer = await ask(gateway, "/plain", trace=SAMPLED)
    # The caller's trace goes on to the function all the same.
    assert answer.json()["traceparent"] == SAMPLED
    async with aiohttp.ClientSession(f"http://127.0.0.1:{health}") as session:
        async with session.get("/metrics") as response:
            assert response.status == 404
            assert "NVCF_METRICS_ADDRESS=health" in await response.text()


@pytest.mark.parametrize("mode", [Mode.DEAD, Mode.HANG, Mode.STALL, Mode.NOISE])
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_backend_that_is_away_costs_no_request_and_is_told_once(
    gateway: PeerGateway, start: Start, backend: OtlpReceiver, protocol: str, mode: Mode
) -> None:
    backend.mode = mode
    port = free_port()
    worker = start(
        NVCF_METRICS_ADDRESS=f"127.0.0.1:{port}",
        OTEL_EXPORTER_OTLP_TIMEOUT="500",
        OTEL_BSP_MAX_QUEUE_SIZE="20",
        **backend.environment(protocol),
    )
    await worker.ready()
    for _ in range(20):
        assert (await ask(gateway, "/plain", trace=SAMPLED)).status == 200

    async def dropped() -> bool:
        text = await metrics(port)
        lines = [
            line for line in text.splitlines()
            if line.startswith("nvcf_telemetry_dropped_total") and 'nvcf_signal="traces"' in line
        ]  # fmt: skip
        return bool(lines) and float(lines[0].split()[-1]) > 0

    await eventually(dropped, "drops are counted")
    assert (await ask(gateway, "/plain", trace=SAMPLED)).status == 200
    worker.send_signal(signal.SIGTERM)
    assert await worker.exit_code() == 0
    assert worker.text().count("traces cannot be sent") <= 1


async def test_metering_events_are_lines_of_json(gateway: PeerGateway, start: Start, tmp_path: Path) -> None:
    events = tmp_path / "metering.jsonl"
    worker = start(
        NVCF_METERING=str(events), NVCF_METERING_HEARTBEAT_SECONDS="1", GPU_NAME="L40S",
        ATTACHED_GPU_COUNT="2", FUNCTION_TAGS='["team-a"]', ICMS_ENVIRONMENT="local",
    )  # fmt: skip
    await worker.ready()
    await ask(gateway, "/plain", headers={"X-Billing-Team": "research"})
    await ask(gateway, "/fails")

    def read() -> list[dict[str, Any]]:
        text = events.read_text() if events.exists() else ""
        return [json.loads(line)["data"] for line in text.splitlines()]

    def of(kind: str) -> list[dict[str, Any]]:
        return [event["properties"] for event in read() if event["event_type"] == kind]

    await eventually(lambda: len(of("NVCF_Invocation")) == 2, "invocations")
    await eventually(lambda: len(of("NVCF_Infrastructure")) >= 3, "heartbeats")
    worker.send_signal(signal.SIGTERM)
    assert await worker.exit_code() == 0
    # A response may be with its caller a moment before its event is made.
    second, first = sorted(of("NVCF_Invocation"), key=lambda event: str(event["response_type"]))
    assert (first["response_type"], second["response_type"]) == ("FULFILLED", "ERRORED")
    assert first["billing_headers"] == {"x-billing-team": "research"}
    assert (first["gpus"], first["gpu_type"], first["user_function_tags"]) == (2, "L40S", ["team-a"])
    assert first["size"] > 0
    statuses = [event["status"] for event in of("NVCF_Infrastructure")]
    assert statuses[0] == "initializing"
    assert statuses[-1] == "ready"
    assert all(event["instance_id"] == "instance-0" for event in of("NVCF_Infrastructure"))


async def test_a_broker_that_went_away_and_came_back_is_counted(
    tmp_path: Path, backend: OtlpReceiver, own_broker: NatsServer
) -> None:
    gateway = PeerGateway(own_broker.url)
    await gateway.start()
    worker = WorkerProcess(str(FUNCTION), gateway, own_broker, tmp_path, environment=backend.environment())
    try:
        await worker.ready()
        await eventually(lambda: backend.total("nvcf.broker.connected") == 1, "connected")
        own_broker.kill()
        await eventually(lambda: backend.total("nvcf.broker.connected") == 0, "the loss is reported")
        own_broker.start()
        await eventually(lambda: backend.total("nvcf.broker.reconnects") == 1, "the return is reported")
        assert backend.total("nvcf_nats_disconnect_total") >= 1
        assert backend.total("nvcf_nats_error_total") >= 1
    finally:
        worker.kill()
        await gateway.stop()
