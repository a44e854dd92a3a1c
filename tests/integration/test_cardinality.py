"""Ten thousand functions in use: the metrics of gateway and autoscaler stay bounded, the sums correct."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict

from prometheus_client.parser import text_string_to_metric_families

FUNCTIONS = 10_000
LIMIT = 1000

# Each needs its own process, because providers are set once in a process.
GATEWAY = """
import sys
from typing import Any
from nvcf_gateway.queue.demand import Demand
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.registry import VersionIndex
from nvcf_gateway.telemetry.http_span import HttpTelemetry
from nvcf_gateway.telemetry.metrics import GatewayMetrics, register_gauges
from nvcf_gateway.telemetry.enqueue_span import EnqueueTelemetry
from nvcf_gateway.telemetry.sessions import SessionTelemetry
from nvcf_otel.setup import start_telemetry
from nvcf_proto.ids import new_id
from nvcf_proto.models import FunctionVersion

telemetry = start_telemetry("gateway", instance_id="g", environ={}, page=True)
metrics, nothing = GatewayMetrics(), None
demand = Demand(nothing, "g", VersionIndex(), lambda: 1.0)
http, sending = HttpTelemetry(metrics), EnqueueTelemetry(metrics, "local")
sessions = SessionTelemetry(http, sending)
register_gauges(metrics, demand.waiting, lambda: sessions.active, sessions.bytes)
methods = ["POST", "GET", "BREW", "post", *(f"M{number}" for number in range(100))]
for number in range(int(sys.argv[1])):
    version = FunctionVersion(new_id(), new_id(), f"function-{number}", "account", 1.0)
    with demand.counted(version.id) as tally:
        request = http.request(methods[number % len(methods)], {})
        request.set_route("/v2/nvcf/pexec/functions/{function_id}", "pexec", path=f"/{number}")
        request.version = version
        if number % 10:
            with sending.enqueue(version, new_id(), 10, {}):
                pass
            sending.cold_start(version, new_id())(True)
        else:
            request.problem = HttpProblem(400 + number % 97)
        request.end(400 + number % 97 if number % 10 == 0 else 200 + number % 800)
sys.stdout.buffer.write(telemetry.page()[0])
"""

AUTOSCALER = """
import sys
from nvcf_autoscaler.controller.queues import QueueState
from nvcf_autoscaler.controller.version_state import VersionState
from nvcf_autoscaler.telemetry.snapshot import Snapshots
from nvcf_autoscaler.controller.recorder import Recorder
from nvcf_otel.setup import start_telemetry
from nvcf_proto.ids import new_id
from nvcf_proto.models import FunctionVersion, Instance, InstanceState

telemetry = start_telemetry("autoscaler", instance_id="a", environ={}, page=True)
now = 1000.0
snapshots = Snapshots(lambda: True)
snapshots.register()
recorder = Recorder(snapshots, lambda: now)
names = [f"function-{number}" for number in range(int(sys.argv[1]))]
versions = [FunctionVersion(new_id(), new_id(), name, "account", 1.0) for name in names]
watched = [VersionState() for _ in versions]
for now in (1000.0, 1001.0):
    for version, memory in zip(versions, watched):
        instance = Instance(
            new_id(), version.function_id, version.id, "cluster", InstanceState.RUNNING, 1.0, 1.0, gpu="H100"
        )
        recorder.observed(version, memory, QueueState(1, 1, 2, 5.0), [instance], 2, (("0-H100", 1),))
sys.stdout.buffer.write(telemetry.page()[0])
"""


def metrics_of(script: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return the samples of a process' metrics page by name."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(FUNCTIONS)], capture_output=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout) < 30 * 2**20
    found: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for family in text_string_to_metric_families(done.stdout.decode()):
        for sample in family.samples:
            found[sample.name].append((sample.labels, sample.value))
    return found


def versions_in(samples: list[tuple[dict[str, str], float]]) -> Counter[str]:
    return Counter(labels["nvcf_function_version_id"] for labels, _ in samples)


def test_a_gateway() -> None:
    found = metrics_of(GATEWAY)
    queued = FUNCTIONS - FUNCTIONS // 10
    for name, total in (
        ("nvcf_enqueue_duration_seconds_count", queued),
        ("nvcf_invocation_cold_start_duration_seconds_count", queued),
        ("nvcf_invocation_cold_starts_total", queued),
        ("nvcf_invocation_duration_seconds_count", FUNCTIONS),
        ("nvcf_invocation_active", 0),
    ):
        samples = found[name]
        assert len(versions_in(samples)) <= LIMIT + 1, name
        assert sum(value for _, value in samples) == total, name
        assert "other" in versions_in(samples), name
    # Each version has only a few outcomes, for any request and any response.
    assert len(found["nvcf_invocation_duration_seconds_count"]) < 2 * LIMIT
    assert len(found["nvcf_invocation_rejected_total"]) < 20
    assert len(found["http_server_request_duration_seconds_count"]) < 3 * 80
    assert sum(len(samples) for samples in found.values()) < 100_000


def test_an_autoscaler() -> None:
    found = metrics_of(AUTOSCALER)
    for name, total in (
        ("nvcf_queue_depth", FUNCTIONS),
        ("nvcf_requests_in_flight", FUNCTIONS),
        ("nvcf_instances", FUNCTIONS),
        ("nvcf_scaling_desired", FUNCTIONS),
        ("nvcf_gpu_time_seconds_total", FUNCTIONS),
    ):
        samples = found[name]
        assert len(versions_in(samples)) == LIMIT + 1, name
        assert abs(sum(value for _, value in samples) - total) < 1e-6 * total, name
    assert len(found["nvcf_function_info"]) == LIMIT
    assert {value for _, value in found["nvcf_utilisation_ratio"]} == {0.5}
    assert {value for _, value in found["nvcf_queue_age_seconds"]} == {5.0}
    assert sum(len(samples) for samples in found.values()) < 12 * LIMIT
