"""Errors of functions and callers in OpenAI's form, whatever they contain."""

from __future__ import annotations

import json

import pytest

from nvcf_gateway.http.responses import json_response
from nvcf_gateway.llm.errors import error_response, event, model_not_found, of_function


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 60_000,
        b'{"error":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
        b'{"error": {"message": "\\ud800"}}',
        b'{"detail": "\\ud800"}',
        b'{"error": {"message": NaN}}',
        b"\xff\xfe{",
        b"1" * 50_000,
    ],
    ids=["deep", "deep error", "half a pair", "half a pair in a problem", "NaN", "no UTF-8", "long number"],
)
def test_any_error_of_a_function_is_a_document_and_an_event(body: bytes) -> None:
    found = of_function(422, body)
    sent = json_response(422, found).body
    assert isinstance(sent, bytes)
    assert "error" in json.loads(sent)
    line = event(found).removeprefix(b"data: ").removesuffix(b"\n\n")
    assert b"NaN" not in line
    assert "error" in json.loads(line)


def test_a_name_that_is_no_unicode_is_an_error_that_can_be_sent() -> None:
    sent = error_response(model_not_found("no model '\ud800'")).body
    assert isinstance(sent, bytes)
    assert json.loads(sent)["error"]["message"] == "no model '?'"
