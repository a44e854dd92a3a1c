"""What a process tells of itself arrives beside the histograms that it keeps by itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.otlp.receiver import OtlpReceiver

# In a process of its own, for the SDK's providers are global.
PROGRAM = """
from nvcf_otel import instruments
from nvcf_otel.histograms import histogram
from nvcf_otel.setup import start_telemetry
telemetry = start_telemetry("probe", instance_id="one")
histogram(instruments.ENQUEUE_DURATION).series({}).record(1.0)
telemetry.shutdown()
"""


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_histograms_do_not_take_the_place_of_other_metrics(protocol: str) -> None:
    with OtlpReceiver() as backend:
        environment = {**os.environ, **backend.environment(protocol)}
        subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, timeout=60)
        expected = {"nvcf.enqueue.duration", "nvcf.telemetry.dropped", "process.cpu.time"}
        assert expected <= backend.metric_names()
