"""A gateway has few time series whatever callers and functions do, and counts each call as what it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from nvcf_broker.wire import Wire
from nvcf_gateway.errors import HttpProblem, NoRoom
from nvcf_gateway.telemetry import http_span
from nvcf_gateway.telemetry.enqueue_span import EnqueueTelemetry
from nvcf_gateway.telemetry.http_span import OTHER_METHOD, HttpTelemetry, RequestTelemetry, known_method
from nvcf_gateway.telemetry.metrics import GatewayMetrics, known_status, reason_of
from nvcf_gateway.telemetry.sessions import SessionTelemetry
from nvcf_otel import histograms, names, spans
from nvcf_otel.cardinality import OTHER, Bounded
from nvcf_otel.histograms import Histogram
from nvcf_proto.ids import is_id

TRACE = "a" * 32
SAMPLED, UNSAMPLED = f"00-{TRACE}-{'b' * 16}-01", f"00-{TRACE}-{'b' * 16}-00"


@dataclass(frozen=True)
class Version:
    """As much of a version as is counted by."""

    id: str
    function_id: str = "f"
    name: str = "n"


@pytest.fixture(autouse=True)
def own_histograms(monkeypatch: pytest.MonkeyPatch) -> dict[str, Histogram]:
    found: dict[str, Histogram] = {}
    monkeypatch.setattr(histograms, "HISTOGRAMS", found)
    return found


def series(found: dict[str, Histogram], name: str) -> list[tuple[dict[str, object], int]]:
    if name not in found:
        return []
    return [(dict(each.attributes), sum(each.counts)) for each in found[name].all()]


# --- attributes


@pytest.mark.parametrize(
    ("method", "known"), [("GET", "GET"), ("PATCH", "PATCH"), ("get", OTHER_METHOD), ("BREW", OTHER_METHOD)]
)
def test_methods(method: str, known: str) -> None:
    assert known_method(method) == known


@pytest.mark.parametrize(("status", "known"), [(200, 200), (418, 418), (299, 200), (599, 500), (999, 900)])
def test_statuses(status: int, known: int) -> None:
    assert known_status(status) == known


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (HttpProblem(401), "unauthorised"),
        (HttpProblem(404), "not-found"),
        (HttpProblem(429), "rate-limited"),
        (NoRoom("full"), "queue-full"),
        (HttpProblem(418), "other"),
        (None, "other"),
    ],
)
def test_reasons(problem: HttpProblem | None, reason: str) -> None:
    assert reason_of(problem) == reason


def test_ten_thousand_functions_hostile_methods_and_statuses_are_few_series(
    own_histograms: dict[str, Histogram],
) -> None:
    metrics, chance = GatewayMetrics(), random.Random(7)
    for number in range(10_000):
        version = Version(f"v{number}", f"f{number}")
        metrics.enqueued(version).record(0.1)
        metrics.invocation(version, names.PEXEC, names.FULFILLED).record(0.1)
        metrics.cold_start(version).record(0.1)
        metrics.found_no_instance(version)
        metrics.rejected(names.PEXEC, HttpProblem(chance.randrange(400, 500)))
        method = known_method("".join(chance.choices("ABCDEFGH", k=8)))
        metrics.http(method, "", chance.randrange(200, 1000)).record(0.1)
    for name in ("nvcf.enqueue.duration", "nvcf.invocation.duration", "nvcf.invocation.cold_start.duration"):
        found = series(own_histograms, name)
        assert len(found) == 1001, name
        assert sum(count for _, count in found) == 10_000, name
        assert (9000, OTHER) in [(count, each[names.FUNCTION_VERSION_ID]) for each, count in found], name
    assert len(metrics.cold_starts) == 1001
    assert len(metrics.refused) <= 12
    assert len(series(own_histograms, "http.server.request.duration")) <= len(HTTPStatus) + 8


def test_metrics_of_versions_that_are_released_are_dropped(own_histograms: dict[str, Histogram]) -> None:
    now = 0.0
    metrics = GatewayMetrics(versions=Bounded(limit=2, idle_seconds=60, clock=lambda: now))
    for version in ("one", "two", "three"):
        metrics.invocation(Version(version), names.PEXEC, names.FULFILLED).record(0.1)
        metrics.found_no_instance(Version(version))
    now = 100.0
    metrics.invocation(Version("three"), names.PEXEC, names.FULFILLED).record(0.1)
    counts = {
        each[names.FUNCTION_VERSION_ID]: count
        for each, count in series(own_histograms, "nvcf.invocation.duration")
    }
    assert counts == {OTHER: 1, "three": 1}
    assert dict(metrics.cold_starts) == {(OTHER, OTHER): 1}


# --- HTTP requests


@pytest.fixture
def http() -> Iterator[HttpTelemetry]:
    """With an SDK that records what callers ask for, and nothing else."""
    found = HttpTelemetry(GatewayMetrics())
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(0.0))
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    found.tracer, found.tracing, found.follows_parents = provider.get_tracer("test"), True, True
    found.exporter = exporter  # type: ignore[attr-defined]
    yield found
    assert not trace.get_current_span().get_span_context().is_valid


def spans_of(http: HttpTelemetry) -> list[ReadableSpan]:
    return list(http.exporter.get_finished_spans())  # type: ignore[attr-defined]


def begun(
    http: HttpTelemetry, headers: dict[str, str], route: str = "/r", kind: str | None = names.PEXEC
) -> RequestTelemetry:
    found = http.request("POST", headers)
    found.set_route(route, kind, path="/r")
    return found


def test_an_unsampled_caller_pays_nothing_and_passes_on(http: HttpTelemetry) -> None:
    headers = {"traceparent": UNSAMPLED, "tracestate": "a=1"}
    found = begun(http, headers)
    assert found.carrier is headers
    found.end(200)
    assert spans_of(http) == []


def test_an_unrecorded_trace_begins_here_too(http: HttpTelemetry) -> None:
    found = begun(http, {"baggage": "user=1"})
    context = spans.parse(found.carrier)
    assert context is not None
    assert not context.trace_flags.sampled
    assert found.carrier["baggage"] == "user=1"
    found.end(200)
    assert spans_of(http) == []


def test_a_call_that_begins_a_trace_decides_by_the_id_of_its_request(http: HttpTelemetry) -> None:
    spans.decide_roots(0.5)
    try:
        decided = set()
        for _ in range(64):
            headers = {"baggage": "user=1"}
            found = begun(http, headers)
            request_id = http_span.new_request_id()
            decided.add(spans.begins(request_id))
            # What is not recorded is not passed to the worker, which comes to the same decision.
            assert (found.carrier is headers) == (not spans.begins(request_id))
            found.end(200)
        assert decided == {True, False}
    finally:
        spans.decide_roots(None)


def test_only_a_call_that_begins_a_trace_has_its_id_early(http: HttpTelemetry) -> None:
    found = begun(http, {"traceparent": UNSAMPLED})
    assert found.new_request_id is None
    assert is_id(http_span.new_request_id())
    found.end(200)


def test_a_sampled_caller_gets_a_span(http: HttpTelemetry) -> None:
    found = begun(http, {"traceparent": SAMPLED}, "/functions/{id}")
    http_span.set_request("the-request", SAMPLED)
    found.version = Version("v", "f", "hello")  # type: ignore[assignment]
    own = http_span.current_traceparent()
    assert own is not None
    found.queued = True
    found.end(200)
    (span,) = spans_of(http)
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == TRACE
    assert own == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert span.name == "POST /functions/{id}"
    assert span.kind is trace.SpanKind.SERVER
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/functions/{id}",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/r",
        "nvcf.outcome": "fulfilled",
        "nvcf.request.id": "the-request",
        "nvcf.function.id": "f",
        "nvcf.function.name": "hello",
        "nvcf.function.version.id": "v",
    }
    assert [f"{link.context.span_id:016x}" for link in span.links] == ["b" * 16]


@pytest.mark.parametrize(
    ("status", "problem", "queued", "outcome"),
    [
        (200, None, True, "fulfilled"),
        (302, None, True, "fulfilled"),
        (202, None, True, "in-progress"),
        (404, None, True, "errored"),
        (504, None, True, "errored"),
        (429, HttpProblem(429), False, "rejected"),
        (401, HttpProblem(401), False, "rejected"),
        (413, HttpProblem(413), True, "errored"),
        (503, HttpProblem(503), False, "errored"),
        (None, None, True, "gone"),
        (None, HttpProblem(502), True, "errored"),
    ],
)
def test_the_outcome_of_a_call(
    http: HttpTelemetry,
    own_histograms: dict[str, Histogram],
    status: int | None,
    problem: HttpProblem | None,
    queued: bool,
    outcome: str,
) -> None:
    found = begun(http, {"traceparent": SAMPLED})
    found.problem, found.queued = problem, queued
    found.end(status, None if status else ConnectionResetError("left"))
    (span,) = spans_of(http)
    assert (span.attributes or {})["nvcf.outcome"] == outcome
    assert (span.status.status_code is trace.StatusCode.ERROR) == (status is not None and status >= 500)
    ((attributes, count),) = series(own_histograms, "nvcf.invocation.duration")
    assert (attributes[names.OUTCOME], count) == (outcome, 1)
    assert sum(http.metrics.refused.values()) == (outcome == "rejected")
    ((attributes, count),) = series(own_histograms, "http.server.request.duration")
    assert attributes.get(names.HTTP_RESPONSE_STATUS_CODE) == status
    errors = {None: "ConnectionResetError", 503: "503", 504: "504"}
    assert attributes.get(names.ERROR_TYPE) == errors.get(status)


def test_routes_that_are_no_calls_are_only_http(
    http: HttpTelemetry, own_histograms: dict[str, Histogram]
) -> None:
    begun(http, {}, "/v2/nvcf/functions", None).end(200)
    assert series(own_histograms, "nvcf.invocation.duration") == []
    assert len(series(own_histograms, "http.server.request.duration")) == 1


def test_without_an_sdk_there_is_only_the_caller(own_histograms: dict[str, Histogram]) -> None:
    headers = {"traceparent": SAMPLED}
    found = begun(HttpTelemetry(GatewayMetrics()), headers)
    assert found.carrier is headers
    found.end(200)
    assert http_span.current_traceparent() is None


# --- sessions


class Pipe:
    """As much of a transport as writing needs."""

    def write(self, data: bytes) -> None:
        pass


async def test_sessions_and_their_bytes_are_counted_and_outlive_their_tunnels() -> None:
    http = HttpTelemetry(GatewayMetrics())
    sessions = SessionTelemetry(http, EnqueueTelemetry(http.metrics, "local"))
    wires = [Wire(), Wire()]
    for wire in wires:
        wire.transport = Pipe()  # type: ignore[assignment]
        sessions.connected(wire)
        wire.write(b"to the worker")
        wire.data_received(b"back")
    assert (sessions.active, sessions.bytes()) == (2, (26, 8))
    wires[0].connection_lost(None)
    wires[0].write(b"nobody reads this")
    assert (sessions.active, sessions.bytes()) == (1, (26, 8))
    wires[1].connection_lost(ConnectionResetError())
    sessions.connected(wires[1])
    assert (sessions.active, sessions.bytes()) == (0, (26, 8))


@pytest.mark.parametrize(
    ("problem", "outcome", "refused"), [(None, "fulfilled", 0), (429, "rejected", 1), (504, "errored", 0)]
)
def test_opening_a_session_is_a_span_and_a_metric(
    http: HttpTelemetry, own_histograms: dict[str, Histogram], problem: int | None, outcome: str, refused: int
) -> None:
    sessions = SessionTelemetry(http, EnqueueTelemetry(http.metrics, "local"))
    caller = {"Traceparent": SAMPLED}
    with (
        contextlib.suppress(HttpProblem),
        sessions.opening(Version("v"), caller),
    ):
        if problem is not None:
            raise HttpProblem(problem)
    (span,) = spans_of(http)
    assert (span.name, (span.attributes or {})["nvcf.outcome"]) == ("open session", outcome)
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == TRACE
    ((attributes, _),) = series(own_histograms, "nvcf.invocation.duration")
    assert (attributes[names.ROUTE], attributes[names.OUTCOME]) == (names.SESSION, outcome)
    assert sum(http.metrics.refused.values()) == refused
