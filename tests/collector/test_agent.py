"""From an account's endpoint to its backend, through an agent, a worker's process and a real collector."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from nvcf_proto.models import TelemetrySettings
from tests.support.otlp.receiver import OtlpReceiver
from tests.support.otlp.telemetry_site import add_endpoint, watched_version
from tests.support.platform.agent_site import HEALTH, STEADY
from tests.support.platform.agents import Site, running_site
from tests.support.waiting import eventually

# A function that says one thing, with OpenTelemetry's own SDK and nothing but the standard variables.
SPEAKS = (
    HEALTH
    + """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
with provider.get_tracer("user").start_as_current_span("spoken") as span:
    span.set_status(trace.StatusCode.ERROR)
threading.Thread(target=provider.force_flush, daemon=True).start()
"""
    + STEADY[len(HEALTH) :]
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_site(tmp_path) as made:
        yield made


async def test_what_a_function_says_passes_through_the_collector_beside_it(site: Site, program: Path) -> None:
    with OtlpReceiver() as backend:
        await site.start_agent("--collector", str(program))
        settings = TelemetrySettings(sampled_percent=0.0)
        endpoint = await add_endpoint(site, backend.endpoint(), settings=settings)
        version = await watched_version(site, endpoint, SPEAKS)
        (order,) = await site.create(version)
        await site.running(version)
        await eventually(lambda: bool(backend.spans("spoken")))
        span = backend.span("spoken")
        assert span.resource["nvcf.instance.id"] == order.instance_id
        assert span.resource["nvcf.function.name"] == "hello"
        of_site = [each for each in collectors() if str(site.data) in " ".join(each.cmdline())]
        assert len(of_site) == 1
        await site.end(version, order)
        await eventually(lambda: not of_site[0].is_running())


def collectors() -> list[psutil.Process]:
    """Collector processes of this machine."""
    return [each for each in psutil.process_iter(["name"]) if "otelcol" in (each.info["name"] or "")]
