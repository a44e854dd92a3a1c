"""Prometheus remote write out of a real collector into a real Prometheus."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvcf_broker.process import free_port
from nvcf_otel.byoo import check_endpoint
from nvcf_proto.ids import new_id
from nvcf_proto.models import TelemetryEndpoint, TelemetryProtocol, TelemetryProvider, TelemetryType
from tests.collector.conftest import Start
from tests.collector.test_collector import send_counts

WAIT_SECONDS = 30.0


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[str]:
    """Address of a Prometheus that takes remote writes."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no Prometheus here: apt-get install prometheus")
    (tmp_path / "prometheus.yml").write_text("global: {}\n")
    port = free_port()
    process = subprocess.Popen(
        [
            program,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--web.enable-remote-write-receiver",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def query(address: str, expression: str) -> list[dict[str, Any]]:
    """Series of an instant query; none while Prometheus is not up yet."""
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - a loopback address
            return list(json.load(response)["data"]["result"])
    except urllib.error.URLError:
        return []


def test_metrics_arrive_under_prometheus_names_with_the_resource_as_labels(
    collect: Start, prometheus: str
) -> None:
    endpoint = TelemetryEndpoint(
        id=new_id(),
        name="prom",
        nca_id="one",
        endpoint=f"{prometheus}/api/v1/write",
        protocol=TelemetryProtocol.HTTP,
        provider=TelemetryProvider.PROMETHEUS,
        types=(TelemetryType.METRICS,),
        created_at=0.0,
    )
    check_endpoint(endpoint)
    collector = collect({TelemetryType.METRICS: endpoint})
    send_counts(collector, app__sold=3)
    deadline = time.monotonic() + WAIT_SECONDS
    while not (series := query(prometheus, "app_sold_total")):
        assert time.monotonic() < deadline, (collector.folder / "log").read_text()[-2000:]
        time.sleep(0.2)
    assert series[0]["value"][1] == "3"
    assert series[0]["metric"]["nvcf_function_id"] == "f"
