"""What `nvcf top` and `nvcf dashboard` make of the platform's answers."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nvcf_cli.commands.dashboard import has_display
from nvcf_cli.commands.top import render
from nvcf_cli.snapshot import rate_text, seconds_text, share_text, snapshot, sparkline

METRICS: dict[str, Any] = {
    "at": "2026-11-24T09:00:00Z",
    "gateways": {"answered": 1, "known": 2},
    "versions": [
        {
            "functionVersionId": "v1",
            "functionName": "ocr",
            "waiting": 3,
            "arrivalsPerSecond": 2.5,
            "answersPerSecond": 2.0,
            "failuresPerSecond": 0.5,
            "latency": {"p50": 0.2, "p90": 0.9, "p99": 1.5},
            "queue": {"queued": 4, "inFlight": 2, "oldestSeconds": 12.0},
        },
        {"functionVersionId": "v2", "functionName": "new", "latency": None, "queue": None},
    ],
    "series": [{"at": 1, "answersPerSecond": 1.0}, {"at": 6, "answersPerSecond": 2.0}],
}
FUNCTIONS = [
    {"name": "new", "versionId": "v2", "status": "DEPLOYING"},
    {"name": "ocr", "versionId": "v1", "status": "ACTIVE"},
    {"name": "old", "versionId": "v0", "status": "INACTIVE"},
]
INSTANCES = [
    {"functionVersionId": "v1", "state": "RUNNING"},
    {"functionVersionId": "v1", "state": "RUNNING"},
    {"functionVersionId": "v1", "state": "FAILED"},
    {"functionVersionId": "v2", "state": "STARTING"},
]
EVENTS = [
    {"at": "2026-11-24T08:59:00Z", "functionVersionId": "v1", "functionName": "ocr",
     "text": "2 instances: 4 queued", "data": {"desired": "2", "up": "1"}},
]  # fmt: skip
CLUSTERS = [{"clusterId": "berlin", "pools": [{"gpu": "H100", "instancesFree": 1, "instancesTotal": 4}]}]


def shown(width: int = 140, **more: Any) -> str:
    out = io.StringIO()
    now = snapshot(METRICS, FUNCTIONS, INSTANCES, CLUSTERS, EVENTS)
    Console(file=out, width=width, color_system=None).print(render(now, **more))
    return out.getvalue()


def test_a_terminal_obeys_nothing_that_a_function_said() -> None:
    said = "\x1b[2J\x1b]0;owned\x07\x9b31m"
    event = {**EVENTS[0], "text": f"2 instances: {said}", "functionName": said}
    functions = [{**each, "name": said} for each in FUNCTIONS]
    out = io.StringIO()
    now = snapshot(METRICS, functions, INSTANCES, CLUSTERS, [event])
    Console(file=out, width=140, color_system=None).print(render(now))
    assert "owned" in out.getvalue()
    assert not set("\x1b\x07\x9b") & set(out.getvalue())


def test_the_busiest_is_first_and_what_is_not_deployed_is_left_out() -> None:
    now = snapshot(METRICS, FUNCTIONS, INSTANCES, CLUSTERS, EVENTS)
    assert [row.function for row in now.rows] == ["ocr", "new"]
    ocr, new = now.rows
    assert (ocr.queued, ocr.in_flight, ocr.oldest, ocr.p99) == (4, 2, 12.0, 1.5)
    assert ocr.instances == {"RUNNING": 2}
    assert (new.queued, new.p50, new.answers) == (None, None, 0.0)
    assert now.total("queued") == 4
    only = snapshot(METRICS, FUNCTIONS, INSTANCES, CLUSTERS, EVENTS, frozenset({"v2"}))
    assert [row.function for row in only.rows] == ["new"]
    assert only.decisions == ()


def test_the_document_has_the_same_in_the_apis_spelling() -> None:
    document = snapshot(METRICS, FUNCTIONS, INSTANCES, CLUSTERS, EVENTS).to_dict()
    assert document["functions"][0]["inFlight"] == 2
    assert document["functions"][0]["versionId"] == "v1"
    assert document["gateways"] == {"answered": 1, "known": 2}
    assert document["decisions"] == EVENTS


def test_the_picture_tells_numbers_decisions_and_what_is_missing() -> None:
    text = shown()
    for part in ("2/s answered", "3 waiting, 4 queued", "berlin H100 1/4", "1 of 2 gateways did not answer",
                 "1.5 s", "25.00%", "1 → 2", "4 queued"):  # fmt: skip
        assert part in text, (part, text)
    assert "not live, this is from" in shown(trouble="nothing answers")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(len(line) for line in shown(width).splitlines()) <= width


def test_an_empty_platform_is_not_an_error() -> None:
    now = snapshot({}, [], [], [], [])
    out = io.StringIO()
    Console(file=out, width=100).print(render(now))
    assert "nothing is deployed" in out.getvalue()


@given(st.lists(st.floats(0, 1e9), max_size=100), st.integers(1, 80))
def test_a_sparkline_has_a_bar_a_value(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    if values[-width:] and max(values[-width:]) > 0:
        assert "█" in line


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0123, "12.3 ms"), (2.0, "2 s"), (89.9, "89.9 s"), (300.0, "5 min")],
)
def test_durations(value: float | None, text: str) -> None:
    assert seconds_text(value) == text


def test_rates_and_shares() -> None:
    assert [rate_text(each) for each in (0.0, 0.001, 1.234, 1234.5)] == ["0", "<0.01", "1.23", "1234"]
    assert [share_text(0, 0), share_text(0, 2), share_text(1, 4), share_text(3, 2)] == [
        "-", "0%", "25.00%", "100.00%",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "w"}, "linux", True),
        ({}, "darwin", True),
        ({"SSH_CONNECTION": "x"}, "darwin", False),
        ({"SSH_CONNECTION": "x", "DISPLAY": ":10"}, "linux", True),
    ],
)
def test_a_browser_is_opened_where_it_can_be_seen(
    environment: dict[str, str], platform: str, expected: bool
) -> None:
    assert has_display(environment, platform) is expected
