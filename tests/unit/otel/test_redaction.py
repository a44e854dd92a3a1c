"""Secrets do not leave the process in texts."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_otel.logs import JsonFormatter
from nvcf_otel.redaction import REDACTED, Redactor, of_environment

SEED = "S" + "U" + "A" * 56


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def-ghi_jkl", f"Authorization: Bearer {REDACTED}"),
        ("{'authorization': 'Basic dXNlcjpw'}", f"{{'authorization': 'Basic {REDACTED}'}}"),
        ("x-my.api-key=12345678 next", f"x-my.api-key={REDACTED} next"),
        ("prefix-eyJhbGciOi.eyJzdWIiOiI", f"prefix-{REDACTED}"),
        ("sent with bearer abcdefgh12", f"sent with bearer {REDACTED}"),
        ("password=hunter22, user=me", f"password={REDACTED}, user=me"),
        ('{"api_key": "k-123456", "n": 1}', f'{{"api_key": "{REDACTED}", "n": 1}}'),
        ("nats://worker:s3cr3t-s3cr3t@broker:4222", f"nats://worker:{REDACTED}@broker:4222"),
        ("key nvapi-0123456789abcdef here", f"key {REDACTED} here"),
        (f"seed {SEED}", f"seed {REDACTED}"),
        ("jwt eyJhbGciOi.eyJzdWIiOiI.c2lnbmF0dXJl end", f"jwt {REDACTED} end"),
    ],
)
def test_what_looks_like_a_secret(text: str, expected: str) -> None:
    assert Redactor()(text) == expected
    assert Redactor()(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "request 5e1f8b9c-8b3f-4c1e-9d53-0c7b7a1f2e11 took 0.5 s",
        "tokens per second: 5",
        "http://127.0.0.1:8000/path?x=1",
        "the basic idea is simple",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert Redactor()(text) == text


def test_secrets_of_the_environment_are_known() -> None:
    redact = of_environment(
        {
            "NVCF_WORKER_TOKEN": "worker-token-value",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=plain-key-value,authorization=Basic%20dXNlcjpwYXNz",
            "FUNCTION_ID": "not-a-secret-at-all",
        }
    )
    text = redact("worker-token-value plain-key-value dXNlcjpwYXNz not-a-secret-at-all")
    assert text == f"{REDACTED} {REDACTED} {REDACTED} not-a-secret-at-all"


@pytest.mark.parametrize("part", ["a-", "1.5.3.", "eyJaaaaaaa-", "token ", "://a:", "authorization: "])
def test_long_texts_take_no_longer_than_they_are(part: str) -> None:
    # Minutes, where the time grew with the square of the length.
    text = "x: " + part * (1_000_000 // len(part))
    assert Redactor()(text).startswith("x: ")


@given(st.text(max_size=300))
def test_any_text_can_be_redacted_and_twice_is_once(text: str) -> None:
    redact = Redactor(["known-secret"])
    once = redact(text)
    assert redact(once) == once
    assert "known-secret" not in redact(f"{text}known-secret")


def test_log_lines_stay_json_and_have_no_secrets() -> None:
    formatter = JsonFormatter(component="gateway")
    try:
        raise ValueError('token="abcdefghijkl"')
    except ValueError:
        record = logging.LogRecord(
            "a", logging.ERROR, "f", 1, 'secret="%s"', ("x\\y-123456",), sys.exc_info()
        )
    record.detail = "password=abcdefgh"
    line = json.loads(formatter.format(record))
    text = json.dumps(line)
    assert line["component"] == "gateway"
    for secret in ("abcdefghijkl", "123456", "password=abc"):
        assert secret not in text
