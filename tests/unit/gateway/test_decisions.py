"""The gateway's pure decisions: routing, poll time, retries, status of versions, CORS, exec wrapper."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_gateway.config import parse_arguments
from nvcf_gateway.errors import HttpProblem, SetupError
from nvcf_gateway.exchange.exec_json import wrap_response
from nvcf_gateway.http.durations import poll_seconds, publish_delay
from nvcf_gateway.http.responses import cors_headers, preflight_headers
from nvcf_gateway.http.routing import PathTable, Target, pass_through_target
from nvcf_gateway.queue.message import forwarded_headers, header_texts, message_headers
from nvcf_gateway.queue.request_queue import classify_publish_error
from nvcf_gateway.registry import VersionIndex
from nvcf_proto.h1 import ResponseHead
from nvcf_proto.models import Deployment, Instance, InstanceState
from nvcf_proto.models.deployments import deployment_id

F = "0b0e0a52-6f4c-4d3a-9d59-9e3f0f0c1a2b"
V = "5f0a4f4e-56f6-4a50-8a3c-3d1f0e1b2c3d"


@pytest.mark.parametrize(
    ("headers", "host", "target"),
    [
        ({}, "example.test", None),
        ({}, "", None),
        ({}, f"{F}.example.test", Target(F)),
        ({}, f"{V}.{F}.example.test:8080", Target(F, V)),
        ({}, f"{F.upper()}.example.test", Target(F)),
        ({}, f"x.{F}.example.test", None),
        ({}, f"{F[:-1]}.example.test", None),
        ({"function-id": F}, "example.test", Target(F)),
        ({"function-id": f" {F.upper()} ", "function-version-id": V}, "example.test", Target(F, V)),
        ({"function-id": V}, f"{F}.example.test", Target(V)),
    ],
)
def test_pass_through_is_found_by_header_then_by_host(
    headers: dict[str, str], host: str, target: Target | None
) -> None:
    assert pass_through_target(headers, host) == target


@pytest.mark.parametrize(
    ("headers", "host", "target"),
    [
        ({"function-id": "x"}, "", None),
        ({"function-id": "x"}, f"{F}.example.test", Target(F)),
        ({"function-id": F, "function-version-id": ""}, "", Target(F)),
        ({"function-version-id": V}, "", None),
    ],
)
def test_routing_headers_that_are_no_uuid_count_as_absent(
    headers: dict[str, str], host: str, target: Target | None
) -> None:
    assert pass_through_target(headers, host) == target


def test_path_table() -> None:
    table: PathTable[str] = PathTable()
    table.add("GET", "/a", "list")
    table.add("GET", "/a/{one}", "one")
    table.add("DELETE", "/a/{one}", "delete")
    table.add("GET", "/a/{one}/b/{two}", "two")
    assert table.find("/a") == ({"GET": "list"}, {})
    assert table.find("/a/1") == ({"GET": "one", "DELETE": "delete"}, {"one": "1"})
    assert table.find("/a/1/b/2") == ({"GET": "two"}, {"one": "1", "two": "2"})
    for unknown in ("/", "", "/a/", "/a/1/b/", "/b", "/a/1/c/2"):
        assert table.find(unknown) is None


@pytest.mark.parametrize(
    ("value", "accept", "path_route", "seconds"),
    [
        (None, None, True, 60),
        (None, "text/event-stream", True, 1200),
        (None, "text/event-stream", False, 60),
        (None, "text/event-stream, */*", True, 60),
        ("5", "text/event-stream", True, 5),
        ("0", None, True, 1),
        ("-7", None, True, 1),
        (" 3600 ", None, True, 3600),
    ],
)
def test_poll_seconds(value: str | None, accept: str | None, path_route: bool, seconds: int) -> None:
    assert poll_seconds(value, accept=accept, path_route=path_route) == seconds


@given(st.text(max_size=30))
def test_poll_seconds_is_in_bounds_or_400(value: str) -> None:
    try:
        seconds = poll_seconds(value, accept=None, path_route=True)
    except HttpProblem as problem:
        seconds = problem.status - 399  # 400 is the only refusal
    assert 1 <= seconds <= 3600


@given(st.floats(0, 0.999))
def test_publish_is_retried_five_times_with_growing_delays(chance: float) -> None:
    delays = [publish_delay(attempt, chance) for attempt in range(1, 7)]
    assert delays[5] is None
    for attempt, delay in enumerate(delays[:5]):
        assert delay is not None
        assert 0.5 * 2**attempt <= delay <= 2**attempt


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("maximum messages per subject exceeded", "stored"),
        ("maximum messages exceeded", "full"),
        ("resource limits exceeded for account", "full"),
        ("maximum bytes exceeded", "full"),
        ("insufficient resources", "retry"),
    ],
)
def test_refused_publishes(text: str, meaning: str) -> None:
    assert classify_publish_error(text) == meaning


def instance(state: InstanceState, number: int = 1) -> Instance:
    return Instance(f"{V[:-1]}{number}", F, V, "c", state, 0, 0)


def test_version_index_follows_changes() -> None:
    index = VersionIndex()
    index.deployment_changed(V, Deployment(V, F, 0, ()))
    assert index.deployed(F) == [V]
    for state, running in (
        (InstanceState.STARTING, False),
        (InstanceState.RUNNING, True),
        (InstanceState.TERMINATING, False),
        (InstanceState.RUNNING, True),
    ):
        index.instance_changed(instance(state).key, instance(state))
        assert index.is_running(V) is running
        assert [each.state for each in index.instances(V)] == [state]
    index.instance_changed(instance(InstanceState.RUNNING).key, None)
    assert not index.is_running(V)
    assert index.instances(V) == []
    index.deployment_changed(V, None)
    index.deployment_changed(V, None)
    assert index.deployed(F) == []
    assert not index.is_deployed(V)


def test_forwarded_headers() -> None:
    sent = [
        ("Authorization", "Bearer x"), ("Connection", "keep-alive, X-Hop"), ("X-Hop", "1"),
        ("Expect", "100-continue"),
        ("nvcf-invocation-region", "elsewhere"),
        ("Function-Id", F), ("nvcf-poll-seconds", "0"), ("X-A", "1"), ("X-A", "2"), ("Host", "h"),
    ]  # fmt: skip
    kept = [
        ("Function-Id", F), ("X-A", "1"), ("X-A", "2"), ("Host", "h"),
        ("NVCF-POLL-SECONDS", "1"), ("NVCF-INVOCATION-REGION", "here"),
    ]  # fmt: skip
    assert forwarded_headers(sent, 1, "here", pass_through=False) == kept
    disable = ("nvcf-feature-disable-worker-compatibility", "true")
    assert forwarded_headers(sent, 1, "here", pass_through=True) == [*kept, disable]


def test_header_bytes_are_utf8_or_latin1() -> None:
    assert header_texts(()) == []
    assert header_texts([(b"A", "ä".encode()), (b"b", b"")]) == [("A", "ä"), ("b", "")]
    assert header_texts([(b"A", "ä".encode()), (b"b", b"\xe4")]) == [("A", "ä"), ("b", "ä")]
    assert header_texts([(b"A", b"folded\n over two lines")]) == [("A", "folded\n over two lines")]


def test_trace_context_passes_and_none_is_invented() -> None:
    good = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    passed = message_headers({"traceparent": good, "tracestate": "x=1"}, "nvcf.reply.g.t", 9)
    assert passed == {
        "traceparent": good, "tracestate": "x=1",
        "Nvcf-Reply-Subject": "nvcf.reply.g.t", "Nvcf-Reply-Max-Bytes": "9",
    }  # fmt: skip
    # A made-up sampled parent would make every worker record every request, whatever its own ratio.
    assert message_headers({"traceparent": "bad", "tracestate": "x=1"}, None, 0) == {}
    assert message_headers({}, None, 0, kept=False) == {"Nvcf-Kept": "false"}


def test_cors_mirrors_the_request() -> None:
    assert "Access-Control-Allow-Origin" not in cors_headers({})
    answer = preflight_headers({"Origin": "o", "Access-Control-Request-Method": "PUT"})
    assert answer["Access-Control-Allow-Methods"] == "PUT"
    assert answer["Access-Control-Max-Age"] == "86400"


def test_exec_wrapper_leaves_absent_members_out() -> None:
    assert wrap_response("q", ResponseHead(200), b"") == (
        200, {"reqId": "q", "status": "fulfilled", "percentComplete": 100},
    )  # fmt: skip
    assert wrap_response("q", ResponseHead(202), b"") == (202, {"reqId": "q", "status": "in-progress"})
    assert wrap_response("q", ResponseHead(200), b"no json")[1]["response"] == "no json"


@pytest.mark.parametrize(
    "flags",
    [
        ["--http", "x"],
        ["--http", "1.2.3.4:99999"],
        ["--region", "a.b"],
        ["--regions", "b,c"],
        ["--ack-wait", "0"],
    ],
)
def test_bad_flags_are_one_line(flags: list[str]) -> None:
    with pytest.raises(SetupError) as caught:
        parse_arguments(["--signing-key", "k", *flags])
    assert "\n" not in str(caught.value)


def test_version_index_finds_versions_by_deployment() -> None:
    index = VersionIndex()
    earlier, later = Deployment(V, F, 0, ()), Deployment(V, F, 1, (), deployment_id=F)
    index.deployment_changed(V, earlier)
    assert index.version_of(deployment_id(earlier)) == V
    index.deployment_changed(V, later)
    assert (index.version_of(F), index.version_of(deployment_id(earlier))) == (V, None)
    index.deployment_changed(V, None)
    assert index.version_of(F) is None
