"""What a process uses, how late its loop is, and roots of traces."""

from __future__ import annotations

import random
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from nvcf_otel.process import Highest, age, resident_bytes

ROOTS = """
import random, sys
from opentelemetry import trace
from nvcf_otel import spans
from nvcf_otel.setup import start_telemetry

start_telemetry("test", instance_id="i", environ={
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_SAMPLER_ARG": "0.25"})
random.seed(7)
tracer = trace.get_tracer("test")
found = [spans.root(tracer, "root") for _ in range(2000)]
assert all(span.get_span_context().is_valid for span in found)
assert all(span.is_recording() == span.get_span_context().trace_flags.sampled for span in found)
assert len({span.get_span_context().trace_id for span in found}) == 2000
child = tracer.start_span("child", trace.set_span_in_context(found[0]))
assert child.is_recording() == found[0].is_recording()
print(sum(span.is_recording() for span in found))
"""


def test_this_process_has_memory_and_age() -> None:
    assert resident_bytes() > 1 << 20
    assert 0 < age() < 1e6


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), max_size=50))
def test_the_highest_of_a_window(values: list[tuple[float, float]]) -> None:
    values.sort(key=lambda each: each[0])
    highest = Highest(window=10.0)
    for at, value in values:
        highest.add(at, value)
        highest.trim(at)
    now = values[-1][0] if values else 0.0
    expected = max((value for at, value in values if at >= now - 10.0), default=0.0)
    assert highest.at(now) == expected


def test_roots_are_sampled_by_the_ratio_and_their_children_with_them() -> None:
    random.seed(1)
    run = subprocess.run(
        [sys.executable, "-c", ROOTS], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert 400 < int(run.stdout) < 600
