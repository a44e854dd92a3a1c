"""Telemetry endpoints of an account, from the stored record to an instance's environment and files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from nvcf_proto.models import TelemetrySecret, TelemetrySettings
from tests.support.otlp.telemetry_site import add_endpoint, environment, home, watched_version
from tests.support.platform.agents import Site, running_site
from tests.support.waiting import eventually


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_site(tmp_path) as made:
        yield made


async def test_a_worker_gets_the_telemetry_endpoint_and_secret_of_its_account(site: Site) -> None:
    secrets = site.data / "telemetry-secrets" / "account"
    secrets.mkdir(parents=True)
    (secrets / "own").write_text("the-token\n")
    await site.start_agent()
    endpoint = await add_endpoint(site, "https://own.example.com:4317", secret=TelemetrySecret("own"))
    version = await watched_version(site, endpoint)
    await site.create(version)
    (instance,) = await site.running(version)
    seen = await environment(site, instance)
    for kind in ("LOGS", "METRICS", "TRACES"):
        assert seen[f"OTEL_EXPORTER_OTLP_{kind}_ENDPOINT"] == "https://own.example.com:4317"
        assert seen[f"OTEL_EXPORTER_OTLP_{kind}_HEADERS"] == "authorization=Bearer%20the-token"
    assert "the-token" not in site.log()


async def test_a_collectors_configuration_lies_beside_an_instance_that_needs_one(site: Site) -> None:
    await site.start_agent()
    settings = TelemetrySettings(sampled_percent=10.0)
    endpoint = await add_endpoint(site, "http://127.0.0.1:4317", settings=settings)
    version = await watched_version(site, endpoint)
    await site.create(version, 2)
    addresses = set()
    for instance in await site.running(version, 2):
        file = home(site, instance) / "collector.yaml"
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
    endpoint = await add_endpoint(site, "https://own.example.com:4317", secret=TelemetrySecret("lost"))
    version = await watched_version(site, endpoint)
    await site.create(version)
    (instance,) = await site.running(version)
    seen = await environment(site, instance)
    assert not any(name.startswith("OTEL_EXPORTER") for name in seen)
    await eventually(lambda: f"{site.data / 'telemetry-secrets' / 'account'} has no lost" in site.log())
