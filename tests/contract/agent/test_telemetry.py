"""Telemetry endpoints of an account, from the creation message to an instance's environment and files."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import yaml

from tests.support.platform.agent_site import HEALTH, STEADY, Function, Ordered, Site
from tests.support.waiting import eventually

DUMP = "import json\n(shared / 'seen').write_text(json.dumps(dict(os.environ)))\n"


def endpoint(address: str, **more: Any) -> dict[str, Any]:
    """Return an endpoint as a creation message has it; `more` is this project's."""
    known = {"name": "backend", "protocol": "GRPC", "provider": "OTEL_COLLECTOR"}
    return {**known, "endpoint": address, **more}


def watched_version(site: Site, chosen: dict[str, Any]) -> Function:
    """Create a version whose telemetry goes to the endpoint. Its instances write a file `seen`."""
    kinds = ("logsTelemetry", "metricsTelemetry", "tracesTelemetry")
    text = json.dumps({"telemetries": dict.fromkeys(kinds, chosen)})
    return site.version(
        HEALTH + DUMP + STEADY, extra={"telemetries": base64.b64encode(text.encode()).decode()}
    )


async def environment(site: Site, ordered: Ordered) -> dict[str, str]:
    """Return the environment of the instance's process."""
    text = await asyncio.to_thread((site.home(ordered) / "shared" / "seen").read_text)
    return dict(json.loads(text))


async def test_a_worker_gets_the_telemetry_endpoint_and_secret_of_its_account(site: Site) -> None:
    secrets = site.data / "telemetry-secrets" / "account"
    secrets.mkdir(parents=True)
    (secrets / "own").write_text("the-token\n")
    await site.start_agent()
    chosen = endpoint("https://own.example.com:4317", secret={"name": "own"})
    ordered = await site.create(watched_version(site, chosen))
    await site.running(ordered)
    seen = await environment(site, ordered)
    for kind in ("LOGS", "METRICS", "TRACES"):
        assert seen[f"OTEL_EXPORTER_OTLP_{kind}_ENDPOINT"] == "https://own.example.com:4317"
        assert seen[f"OTEL_EXPORTER_OTLP_{kind}_HEADERS"] == "authorization=Bearer%20the-token"
    assert "the-token" not in site.log()


async def test_a_collectors_configuration_lies_beside_an_instance_that_needs_one(site: Site) -> None:
    await site.start_agent()
    chosen = endpoint("http://127.0.0.1:4317", configuration={"sampledPercent": 10.0})
    orders = await site.create_many(watched_version(site, chosen), 2)
    await site.running(*orders)
    addresses = set()
    for instance in orders:
        file = site.home(instance) / "collector.yaml"
        configuration = yaml.safe_load(file.read_text())
        address = configuration["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
        seen = await environment(site, instance)
        assert seen["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://{address}"
        assert seen["OTEL_TRACES_SAMPLER"] == "always_on"
        values = {
            each["key"]: each["value"] for each in configuration["processors"]["resource"]["attributes"]
        }
        assert values["nvcf.instance.id"] == instance.id
        assert f"run one on {file}" in site.log()
        addresses.add(address)
    assert len(addresses) == 2


async def test_a_missing_secret_disables_telemetry_and_not_the_function(site: Site) -> None:
    await site.start_agent()
    chosen = endpoint("https://own.example.com:4317", secret={"name": "lost"})
    ordered = await site.create(watched_version(site, chosen))
    await site.running(ordered)
    seen = await environment(site, ordered)
    assert not any(name.startswith("OTEL_EXPORTER") for name in seen)
    await eventually(lambda: f"{site.data / 'telemetry-secrets' / 'account'} has no lost" in site.log())
