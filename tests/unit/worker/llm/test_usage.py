"""The usage in responses of engines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
