"""C8: values that cannot be encoded or are too large cost themselves, not the telemetry beside them."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import aiohttp
import pytest

from nvcf_broker.process import free_port
from nvcf_otel.cleaning import MAX_TEXT, clean_attributes, clean_value
from nvcf_otel.logs import JsonFormatter
from nvcf_worker.function.secrets import secret
from tests.contract.worker.conftest import StartProcess
from tests.support.otlp.receiver import OtlpReceiver
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually

FUNCTION = """
import logging
from opentelemetry import metrics, trace
from opentelemetry.trace import StatusCode
from nvcf_worker import SyncRequest, secret, serve

class Silent:
    def __str__(self):
        raise RuntimeError("no text")

log = logging.getLogger("function")
counter = metrics.get_meter("function").create_counter("bad.calls")

def handler(request: SyncRequest):
    log.warning("before")
    log.warning("half \\ud800 pair")
    extra = {"big": 2**70, "silent": Silent(), "nul": "a\\0b", "bad": "\\udc80", "\\ud801": 1}
    log.warning("number", extra=extra)
    logging.getLogger("name\\ud800").warning("named")
    for number in range(8):
        log.warning("large " + "x" * 3_000_000)
    tracer = trace.get_tracer("function")
    with tracer.start_as_current_span("span \\ud800") as span:
        span.set_attribute("bad", "\\ud800")
        span.set_attribute("big", 2**70)
        span.set_attribute("huge", "x" * 5_000_000)
        span.add_event("event \\ud800", {"\\ud800": "\\ud800"})
        span.set_status(StatusCode.ERROR, "status \\ud800")
    with tracer.start_as_current_span("neighbour"):
        pass
    counter.add(1, {"label": "half \\ud800"})
    counter.add(2, {"label": "whole"})
    log.warning("after")
    try:
        secret("\\ud800")
    except KeyError:
        return "ok"

serve(handler)
"""
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_c8_nothing_else_is_lost(
    gateway: PeerGateway, start_process: StartProcess, protocol: str
) -> None:
    port = free_port()
    with OtlpReceiver() as backend:
        environment = {
            **backend.environment(protocol),
            "OTEL_RESOURCE_ATTRIBUTES": b"place=\xff".decode(errors="surrogateescape"),
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            "NVCF_METRICS_ADDRESS": f"127.0.0.1:{port}",
            "NVCF_LOG_STREAM": "stdout",
        }
        worker = start_process(FUNCTION, environment=environment)
        await worker.ready()
        async with asyncio.timeout(60):
            answer = await (await gateway.invoke(trace=SAMPLED)).answer()
        assert answer.body == b"ok", worker.text()[-2000:]
        for text in ("before", "half \ufffd pair", "number", "named", "after"):
            await eventually(lambda: backend.logs(text), text, 20, story=backend.summary)  # noqa: B023
        await eventually(lambda: len(backend.logs("large")) == 8, "large lines", 20, story=backend.summary)
        assert all(len(record.body) < 2 * MAX_TEXT for record in backend.logs("large"))
        attributes = backend.logs("number")[0].attributes
        assert (attributes["big"], attributes["nul"]) == (hex(2**70), "a\ufffdb")
        for name in ("span \ufffd", "neighbour", "handler"):
            await eventually(lambda: backend.spans(name), name, 20, story=backend.summary)  # noqa: B023
        await eventually(lambda: "bad.calls" in backend.summary(), "metrics", 20, story=backend.summary)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/metrics") as page,
        ):
            text = await page.text()
        assert page.status == 200
        assert 'label="half \ufffd"' in text
        assert 'label="whole"' in text
    assert "Logging error" not in worker.text()
    assert '"message": "half \\ud800 pair"' in worker.text()


@pytest.mark.parametrize(
    "extra",
    [{"a": float("nan")}, {"a": {(1, 2): 3}}, {"a": "\ud800"}, {"a": b"\xff"}, {"a": {1: object()}}],
)
def test_c8_our_log_lines_are_json_on_every_stream(extra: dict[str, object]) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    record = logging.makeLogRecord({"msg": "text \udfff", "levelname": "INFO", **extra})
    stream.write(JsonFormatter().format(record))
    stream.seek(0)
    assert json.loads(stream.read())["message"] == "text \udfff"


def test_c8_objects_that_contain_themselves() -> None:
    loop: list[object] = []
    loop.append(loop)
    record = logging.makeLogRecord({"msg": "text", "loop": loop})
    assert json.loads(JsonFormatter().format(record))["message"] == "text"
    clean_value(loop)


def test_c8_values() -> None:
    assert clean_attributes({"a\0": ["\ud800", 1 << 63, b"\xff", None, {"k\udfff": {1}}]}) == {
        "a\ufffd": ["\ufffd", hex(1 << 63), b"\xff", None, {"k\ufffd": "{1}"}]
    }
    assert len(clean_value("x" * 10**7)) < MAX_TEXT + 100


def test_c8_a_secret_with_an_impossible_name() -> None:
    with pytest.raises(KeyError):
        secret("\ud800")
