"""Starts of instances as spans and metrics, and the service discovery file for Prometheus."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from nvcf_agent import telemetry
from nvcf_agent.prometheus_sd import PrometheusTargets, document
from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import ManagedInstance
from nvcf_agent.telemetry import AgentTelemetry
from nvcf_otel import histograms
from nvcf_otel.histograms import Histogram
from tests.unit.agent.orders import CLUSTER, FUNCTION, order

DECISION = f"00-{'a' * 32}-{'b' * 16}-01"


def accepted(**changes: Any) -> ManagedInstance:
    return transitions.accepted(order(**changes), Share(slots=1), 1.0)


def started(**changes: Any) -> ManagedInstance:
    return transitions.launched(
        transitions.creating(accepted(**changes), wall=2.0),
        pid=1,
        health_port=1,
        log_path="l",
        now=0.0,
        wall=2.0,
    )


@pytest.fixture(autouse=True)
def own_histograms(monkeypatch: pytest.MonkeyPatch) -> dict[str, Histogram]:
    found: dict[str, Histogram] = {}
    monkeypatch.setattr(histograms, "HISTOGRAMS", found)
    return found


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    found = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    yield found
    provider.shutdown()


def finished(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return list(exporter.get_finished_spans())


def test_a_start_is_part_of_the_decision_and_ends_when_the_instance_serves(
    exporter: InMemorySpanExporter, own_histograms: dict[str, Histogram]
) -> None:
    agent, instance = AgentTelemetry(CLUSTER), accepted(trace_parent=DECISION)
    passed_on = agent.starting(instance)
    assert finished(exporter) == []
    agent.ready(instance.id)
    agent.ready(instance.id)
    (span,) = finished(exporter)
    assert (span.name, span.status.is_ok) == ("create instance", True)
    assert span.parent is not None
    assert f"00-{span.parent.trace_id:032x}-{span.parent.span_id:016x}-01" == DECISION
    assert passed_on == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
    assert (span.attributes or {})["nvcf.instance.id"] == instance.id
    (series,) = own_histograms["nvcf.instance.start.duration"].all()
    assert (series.attributes, sum(series.counts)) == ({"nvcf.cluster.id": CLUSTER, "nvcf.gpu": "CPU"}, 1)


def test_the_parts_of_a_start_are_spans_one_after_the_other(exporter: InMemorySpanExporter) -> None:
    agent, instance = AgentTelemetry(CLUSTER), accepted()
    agent.starting(instance)
    later = time.time() + 5
    for part, at in (("scheduled", later), ("ready", later + 2), ("late", later + 1)):
        agent.part(instance.id, part, at)
    agent.ready(instance.id)
    agent.part(instance.id, "after", later)
    *parts, whole = finished(exporter)
    assert [(each.name, (each.attributes or {})["nvcf.start.part"]) for each in parts] == [
        ("part of start", "scheduled"),
        ("part of start", "ready"),
        ("part of start", "late"),
    ]
    assert all(each.parent is not None and each.parent.span_id == whole.context.span_id for each in parts)
    assert parts[1].start_time == parts[0].end_time == round(later * 1e9)
    assert parts[2].start_time == parts[2].end_time == parts[1].end_time


def test_one_that_fails_says_how(
    exporter: InMemorySpanExporter, own_histograms: dict[str, Histogram]
) -> None:
    agent, instance = AgentTelemetry(CLUSTER), started()
    agent.starting(instance)
    agent.ended(instance, "crash", "exit code 1\nTraceback")
    (span,) = finished(exporter)
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description == "exit code 1"
    assert (span.attributes or {})["nvcf.category"] == "crash"
    assert own_histograms == {}


def test_one_that_was_told_to_leave_before_it_served_was_asked_to(exporter: InMemorySpanExporter) -> None:
    agent, instance = AgentTelemetry(CLUSTER), started()
    agent.starting(instance)
    agent.ended(transitions.terminating(instance, "x", 1.0, 3.0), "crash", "ended")
    (span,) = finished(exporter)
    assert (span.attributes or {})["nvcf.category"] == "asked"


def test_without_an_sdk_the_decisions_context_is_passed_on() -> None:
    agent = AgentTelemetry(CLUSTER)
    assert agent.starting(accepted(trace_parent=DECISION)) == DECISION
    assert agent.starting(accepted()) is None


def test_only_instances_with_a_process_and_an_address_are_targets() -> None:
    one, two, three = started(), started(), accepted()
    addresses = {one.id: "127.0.0.1:1", three.id: "127.0.0.1:3"}
    (found,) = document([one, two, three], addresses, CLUSTER)
    assert found["targets"] == ["127.0.0.1:1"]
    assert found["labels"] == {
        "job": "nvcf-worker",
        "nvcf_cluster_id": CLUSTER,
        "nvcf_function_id": FUNCTION,
        "nvcf_function_name": "hello",
        "nvcf_function_version_id": one.version_id,
        "nvcf_instance_id": one.id,
    }


async def test_the_file_follows_and_is_written_only_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "instances.json"
    targets, instance = PrometheusTargets(path, CLUSTER), started()
    await targets.update([instance])
    assert json.loads(path.read_text()) == []
    targets.set_address(instance.id, "127.0.0.1:1")
    await targets.update([instance])
    assert [each["targets"] for each in json.loads(path.read_text())] == [["127.0.0.1:1"]]
    before = path.stat().st_ino
    await targets.update([replace(instance, reason="x")])
    assert path.stat().st_ino == before
    targets.set_address(instance.id, None)
    await targets.update([instance])
    assert json.loads(path.read_text()) == []


async def test_a_file_that_cannot_be_written_holds_nothing_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics").write_text("in the way")
    targets = PrometheusTargets(tmp_path / "metrics" / "instances.json", CLUSTER)
    for _ in range(3):
        await targets.update([])
    assert caplog.text.count("cannot write") == 1
