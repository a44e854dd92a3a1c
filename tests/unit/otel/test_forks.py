"""A child that is about to exec does nothing of telemetry first: what other threads hold stays locked."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, subprocess, sys
from nvcf_otel.setup import start_telemetry

environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_METRIC_EXPORT_INTERVAL": "60000"}
telemetry = start_telemetry("test", instance_id="1", environ=environ, metrics_address="127.0.0.1:0")
assert telemetry.enabled

def detect():
    # What the SDK does in every forked child. With a lock of concurrent.futures taken over, it never ends.
    os._exit(99)

for name in ("trace", "metrics._internal", "_logs._internal"):
    module = sys.modules[f"opentelemetry.sdk.{name}"]
    assert callable(module._get_process_dependent_resource)
    module._get_process_dependent_resource = detect

for _ in range(5):
    subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: None, timeout=20, check=True)
child = os.fork()
if child == 0:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
telemetry.shutdown(1)
print("all children ended")
"""


def test_children_that_only_exec_get_there() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    assert "all children ended" in done.stdout, done.stderr
