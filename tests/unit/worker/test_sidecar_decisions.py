"""Decisions around a user's server: settings, readiness, headers, health messages, durations."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto.errors import H1Error
from nvcf_worker.errors import ConfigurationError
from nvcf_worker.process.durations import parse_duration
from nvcf_worker.run.sidecar.health import (
    FAILURES_TO_LOSE,
    Change,
    Readiness,
    health_request,
    health_status,
)
from nvcf_worker.run.sidecar.relay import request_headers, response_headers
from nvcf_worker.run.sidecar.settings import read_settings
from nvcf_worker.sidecar_command import parser, read_command


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("1.5", 1.5), (" 2s ", 2), ("500ms", 0.5), ("1m30s", 90), ("1h", 3600), ("1h0.5m", 3630),
        ("PT10S", 10), ("pt1m30s", 90), ("P1DT2H", 93600), ("PT0.5S", 0.5), ("0", 0), ("10us", 1e-5),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1", "1x", "P", "PT", "1s 2s", "1e3", "inf", "1m-30s", "\u0661"])
def test_what_is_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@given(st.text(max_size=12))
def test_no_text_breaks_the_parser(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_duration(text) >= 0


def settings(environ: dict[str, str] | None = None, **given: Any) -> Any:
    return read_settings(environ or {}, **given)


def test_a_port_is_enough() -> None:
    found = settings(port=8000)
    assert (found.host, found.port, found.ready_timeout, found.command) == ("127.0.0.1", 8000, 1800.0, ())
    assert (found.check.protocol, found.check.port, found.check.timeout) == ("tcp", 8000, 10.0)


def test_the_server_of_a_chart_is_its_service() -> None:
    environ = {"HELM_CHART_INFERENCE_SERVICE_NAME": "web", "HELM_CHART_NAMESPACE": "sr-1"}
    assert settings(environ, port=8000).host == "web.sr-1.svc"
    assert settings(environ, port=8000).check.host == "web.sr-1.svc"
    assert settings(environ, port=8000, host="::1").host == "::1"
    # A child process is on this machine.
    assert settings(environ, port=8000, command=["x"]).host == "127.0.0.1"
    del environ["HELM_CHART_NAMESPACE"]
    assert settings(environ, port=8000).host == "127.0.0.1"


def test_the_environment_of_the_platform() -> None:
    environ = {
        "INFERENCE_PORT": "9000",
        "INFERENCE_HEALTH_ENDPOINT": "/v2/health/ready",
        "INFERENCE_HEALTH_PROTOCOL": "HTTP",
        "INFERENCE_HEALTH_PORT": "9001",
        "INFERENCE_HEALTH_TIMEOUT": "PT2S",
        "INFERENCE_HEALTH_EXPECTED_RESPONSE_CODE": "204",
        "INFERENCE_READY_TIMEOUT": "10m",
    }
    found = settings(environ)
    assert (found.port, found.ready_timeout) == (9000, 600.0)
    check = found.check
    assert (check.protocol, check.port, check.endpoint) == ("http", 9001, "/v2/health/ready")
    assert (check.timeout, check.expected) == (2.0, 204)
    given = settings(environ, port=1, health="/x", health_port=2, health_timeout=3, ready_timeout="4s")
    assert (given.port, given.check.endpoint, given.check.port) == (1, "/x", 2)
    assert (given.check.timeout, given.ready_timeout) == (3.0, 4.0)


@pytest.mark.parametrize(
    ("environ", "given", "words"),
    [
        ({}, {}, "no port"),
        ({"INFERENCE_PORT": "x"}, {}, "integer"),
        ({}, {"port": 70000}, "65535"),
        ({}, {"port": 0}, "needs a command"),
        ({}, {"port": 1, "health": "ready"}, "begins with '/'"),
        ({}, {"port": 1, "health_protocol": "udp"}, "http, grpc or tcp"),
        ({"INFERENCE_HEALTH_TIMEOUT": "soon"}, {"port": 1}, "INFERENCE_HEALTH_TIMEOUT"),
        ({"INFERENCE_READY_TIMEOUT": "0"}, {"port": 1}, "above 0"),
        ({"INFERENCE_HEALTH_EXPECTED_RESPONSE_CODE": "99"}, {"port": 1}, "200 to 599"),
    ],
)
def test_unusable_settings_say_why(environ: dict[str, str], given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        settings(environ, **given)


def test_any_free_port_reaches_command_and_check() -> None:
    found = settings(port=0, command=["serve", "--port={port}"]).with_free_port()
    assert found.port > 0
    assert found.check.port == found.port
    assert found.command_line() == ["serve", f"--port={found.port}"]
    options, command = read_command(
        parser(), ["--port", "1", "--", "a", "--port", "2", "--", "b"], "it comes"
    )
    assert (options["port"], command) == (1, ["a", "--port", "2", "--", "b"])
    assert read_command(parser(), ["--port", "1"], "it comes")[1] == []
    with pytest.raises(ConfigurationError, match="unexpected 'a'; it comes after '--'"):
        read_command(parser(), ["--port", "1", "a"], "it comes")


def test_readiness_in_order() -> None:
    state = Readiness(ready_timeout=60, interval=5, since=0)
    assert state.checked(False, 1) is Change.NOTHING
    assert state.pause(1) == 0.1
    assert state.pause(30) == 1.0
    assert state.checked(True, 31) is Change.READY
    assert state.pause(31) == 5
    assert state.checked(False, 36) is Change.NOTHING
    assert state.pause(36) == 1.0
    assert state.checked(False, 37) is Change.NOTHING
    assert state.checked(False, 38) is Change.LOST
    assert state.checked(False, 97) is Change.NOTHING
    assert state.checked(False, 98) is Change.GIVEN_UP


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 20)), max_size=80))
def test_readiness_follows_the_checks(checks: list[tuple[bool, float]]) -> None:
    """Ready exactly after a good check until enough bad ones in a row; given up only after the time-out."""
    state, now, bad, ready, since = Readiness(60, 5, 0), 0.0, 0, False, 0.0
    for healthy, passed in checks:
        now += passed
        change = state.checked(healthy, now)
        bad = 0 if healthy else bad + 1
        if healthy:
            assert change is (Change.NOTHING if ready else Change.READY)
            ready = True
        elif ready and bad >= FAILURES_TO_LOSE:
            assert change is Change.LOST
            ready, since = False, now
        else:
            assert change is (Change.GIVEN_UP if not ready and now - since >= 60 else Change.NOTHING)
        assert state.ready is ready
        assert 0 <= state.pause(now) <= 5


def test_headers_to_the_server() -> None:
    pairs = [
        ("Host", "a"),
        ("X", "1"),
        ("x", "2"),
        ("Content-Length", "5"),
        ("TE", "trailers"),
        ("expect", "y"),
    ]
    assert request_headers(pairs, keep_length=False) == [("X", "1"), ("x", "2"), ("X-Forwarded-Host", "a")]
    kept = request_headers([*pairs, ("x-forwarded-host", "b")], keep_length=True)
    assert kept == [("X", "1"), ("x", "2"), ("Content-Length", "5"), ("x-forwarded-host", "b")]


@pytest.mark.parametrize(
    ("pairs", "has_body", "added"),
    [
        ([], True, [("Content-Type", "application/json")]),
        ([], False, []),
        ([("content-type", "text/plain")], True, []),
        ([("nvcf-feature-disable-worker-compatibility", "true")], True, []),
    ],
)
def test_a_body_without_a_type_is_json(
    pairs: list[tuple[str, str]], has_body: bool, added: list[tuple[str, str]]
) -> None:
    """Of exec and pexec, as with NVIDIA's worker; pass-through adds nothing."""
    assert request_headers(pairs, keep_length=False, has_body=has_body) == pairs + added


@pytest.mark.parametrize(
    ("status", "method", "complete", "kept"),
    [
        (200, "GET", True, False), (200, "HEAD", True, True), (200, "GET", False, True),
        (204, "GET", True, False), (304, "HEAD", True, False),
    ],
)  # fmt: skip
def test_content_length_of_answers(status: int, method: str, complete: bool, kept: bool) -> None:
    pairs = [("Set-Cookie", "a"), ("content-length", "5"), ("Set-Cookie", "b"), ("Connection", "close")]
    expected = [pair for pair in pairs[:3] if kept or pair[0] != "content-length"]
    assert response_headers(status, method, pairs, complete=complete) == expected


def test_answers_that_cannot_be_passed_on() -> None:
    with pytest.raises(ValueError, match="64 headers"):
        response_headers(200, "GET", [(f"x-{n}", "1") for n in range(64)], complete=True)
    with pytest.raises(ValueError, match="exceed"):
        response_headers(200, "GET", [("x", "y" * 417_792)], complete=True)
    with pytest.raises((ValueError, H1Error)):
        response_headers(200, "GET", [("x", "a\nb")], complete=True)


def test_grpc_health_messages() -> None:
    assert health_request("") == b""
    assert health_request("my.Service") == b"\x0a\x0amy.Service"
    assert [health_status(data) for data in (b"", b"\x08\x01", b"\x08\x02")] == [0, 1, 2]
    with pytest.raises(ValueError, match="127"):
        health_request("x" * 128)
