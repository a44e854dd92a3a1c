"""The usage in responses of engines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker.run.llm import telemetry
from nvcf_worker.run.llm.usage import Usage, usage_in_events, usage_of

CHAT = {"usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}


@pytest.mark.parametrize(
    ("document", "usage"),
    [
        (CHAT, Usage(3, 5)),
        ({"usage": {"prompt_tokens": 3, "total_tokens": 3}}, Usage(3, None)),
        ({"usage": {"input_tokens": 2, "output_tokens": 4}}, Usage(2, 4)),
        ({"type": "response.completed", "response": {"usage": {"input_tokens": 2}}}, Usage(2, None)),
        ({"usage": None}, None), ({"usage": {"prompt_tokens": True}}, None),
        ({"usage": {"prompt_tokens": -1}}, None),
        ({"usage": [1]}, None), ([{"usage": 1}], None), ({"text": '"usage"'}, None),
    ],
)  # fmt: skip
def test_a_document_says_its_usage(document: object, usage: Usage | None) -> None:
    assert usage_of(json.dumps(document).encode()) == usage


def test_the_last_usage_of_a_stream_counts() -> None:
    running = {"usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    events = "".join(f"data: {json.dumps(each)}\n\n" for each in (running, CHAT)) + "data: [DONE]\n\n"
    assert usage_in_events(events.encode()) == Usage(3, 5)
    assert usage_in_events(b'data: {"usage": \n\n') is None


@given(st.binary(max_size=200))
def test_no_bytes_are_an_error(noise: bytes) -> None:
    usage_of(b'"usage"' + noise)
    usage_in_events(b'data: "usage"' + noise)


@pytest.mark.parametrize("events", [False, True])
def test_tokens_of_a_response_that_came_as_a_whole(monkeypatch: pytest.MonkeyPatch, events: bool) -> None:
    found: list[tuple[str, float]] = []
    monkeypatch.setattr(telemetry, "measure", lambda name, value, *_: found.append((name, value)))
    document = json.dumps(CHAT).encode()
    measured = telemetry.Measured("/v1/chat/completions?a", "vllm", "m")
    measured.complete(b"data: " + document + b"\n\ndata: [DONE]\n\n" if events else document, events=events)
    assert [value for name, value in found if name == "gen_ai.client.token.usage"] == [3, 5]
    assert ("gen_ai.server.time_to_first_token" in dict(found)) == events


def test_answers_that_are_too_deep_or_count_too_much_have_no_usage() -> None:
    deep = b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b', "usage": {"prompt_tokens": 3}}'
    assert usage_of(deep) is None
    assert usage_in_events(b"data: " + deep + b"\n\n") is None
    assert usage_of(json.dumps({"usage": {"prompt_tokens": 10**400}}).encode()) is None
