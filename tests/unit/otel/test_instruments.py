"""All metrics have proper names, and the page uses their names in Prometheus."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nvcf_otel import compatible, instruments, worker_instruments
from nvcf_otel.instrument import Instrument, Kind, prometheus_name


def test_names_are_there_once_and_proper() -> None:
    names = [each.name for each in instruments.ALL]
    assert len(set(names)) == len(names)
    peer = {each.name for each in (*compatible.ALL, *worker_instruments.TRITON)}
    for each in instruments.ALL:
        assert each.description.endswith("."), each.name
        assert each.name in peer or re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", each.name), each.name
        assert (each.buckets is not None) == (each.kind is Kind.HISTOGRAM), each.name
        assert each.buckets is None or list(each.buckets) == sorted(set(each.buckets)), each.name


def test_no_two_metrics_are_one_in_prometheus() -> None:
    names = [each.prometheus_name for each in instruments.ALL]
    assert len(set(names)) == len(names)


def test_no_attribute_can_have_any_number_of_values() -> None:
    unbounded = {"nvcf.request.id", "url.path", "user.id", "nvcf.instance.id", "service.instance.id"}
    for each in instruments.ALL:
        assert not unbounded & set(each.attributes), each.name


@pytest.mark.parametrize(
    ("instrument", "expected"),
    [
        (worker_instruments.HANDLER_DURATION, "nvcf_handler_duration_seconds"),
        (worker_instruments.STREAM_ITEMS, "nvcf_stream_items_total"),
        (worker_instruments.GPU_UTILIZATION, "hw_gpu_utilization_ratio"),
        (worker_instruments.PROCESS_CPU_TIME, "process_cpu_time_seconds_total"),
        (worker_instruments.PROCESS_MEMORY_USAGE, "process_memory_usage_bytes"),
        (instruments.GPU_TIME, "nvcf_gpu_time_seconds_total"),
    ],
)
def test_names_in_prometheus(instrument: Instrument, expected: str) -> None:
    assert instrument.prometheus_name == expected


def test_names_of_nvidia_are_the_same_in_prometheus() -> None:
    for each in compatible.ALL:
        assert each.prometheus_name == each.name


def test_a_counter_is_not_called_total_twice() -> None:
    assert prometheus_name("a.total", Kind.COUNTER, "") == "a_total"


def test_the_table_in_the_documentation_is_fresh() -> None:
    script = Path(__file__).parent.parent.parent.parent / "scripts" / "generate_docs.py"
    assert subprocess.run([sys.executable, str(script), "--check", "metrics.md"], check=False).returncode == 0
