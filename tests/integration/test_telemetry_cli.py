"""`nvcf telemetry` against a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import yaml

from tests.support.platform.gateways import Platform, running_platform


async def nvcf(platform: Platform, *arguments: str, code: int = 0) -> tuple[str, str]:
    """Run a command that ends with `code`. Returns output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nvcf_cli", "telemetry", *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "NVCF_URL": platform.gateway.url, "NVCF_API_KEY": platform.keys["admin"]},
    )  # fmt: skip
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode == code, errors.decode()
    return output.decode(), errors.decode()


async def test_from_add_to_render_to_rm(tmp_path: Path) -> None:
    async with running_platform(tmp_path) as platform:
        output, _ = await nvcf(platform, "list")
        assert "try nvcf telemetry add" in output
        output, _ = await nvcf(
            platform, "add", "grafana", "--provider", "grafana-cloud", "--secret", "grafana-prod",
            "--endpoint", "https://otlp-gateway.example.com/otlp", "--sampled-percent", "0",
        )  # fmt: skip
        assert "/grafana-prod-instanceId, " in output
        output, _ = await nvcf(
            platform, "add", "prom", "--provider", "prometheus", "--json", "--secret", "prom",
            "--endpoint", "https://prom.example.com/write",
        )  # fmt: skip
        assert json.loads(output)["types"] == ["METRICS"]

        _, errors = await nvcf(platform, "add", "prom", "--endpoint", "prom:9090", code=1)
        assert errors == (
            "error: Bad Request: Invalid request: endpoint: expected an address such as "
            "https://collector.example.com:4318 [HTTP 400]\n"
        )
        _, errors = await nvcf(platform, "add", "prom", "--endpoint", "http://other", code=1)
        assert "there is a telemetry endpoint 'prom' already" in errors

        output, _ = await nvcf(platform, "list")
        assert [line.split()[0] for line in output.splitlines()] == ["NAME", "grafana", "prom"]
        output, _ = await nvcf(
            platform, "render", "prom", "grafana", "--secrets", "/s", "--attribute", "team=one"
        )
        configuration = yaml.safe_load(output)
        exporters = {name: each["exporters"] for name, each in configuration["service"]["pipelines"].items()}
        assert exporters["metrics"] == ["prometheusremotewrite/PROMETHEUS-prom-metrics"]
        assert exporters["traces"] == ["otlphttp/GRAFANA_CLOUD-grafana-traces"]
        assert "tail_sampling" in configuration["processors"]

        await nvcf(platform, "rm", "prom")
        _, errors = await nvcf(platform, "rm", "prom", code=1)
        assert errors == "error: there is no telemetry endpoint prom; there are: grafana\n"
