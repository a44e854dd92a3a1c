"""Server-sent events pass whole, unchanged and counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto.server_sent_events import WholeEvents

ENDS = ("\n\n", "\r\n\r\n", "\r\r")


@given(st.lists(st.sampled_from([b"data: x", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r", b"\r"])))
def test_events_pass_whole_and_all_of_them(parts: list[bytes]) -> None:
    events = WholeEvents(limit=1000)
    passed = b""
    for part in parts:
        passed += events.feed(part)
        assert not passed or passed.endswith((b"\n\n", b"\n\r\n", b"\r\r"))
    assert passed + events.rest() == b"".join(parts)


@given(st.lists(st.text("abc:{} ", min_size=1), max_size=8), st.sampled_from(ENDS), st.data())
def test_each_event_passes_with_its_last_byte(texts: list[str], end: str, data: st.DataObject) -> None:
    body = "".join(text + end for text in texts).encode()
    events, at, passed = WholeEvents(), 0, b""
    while at < len(body):
        size = data.draw(st.integers(1, len(body)))
        passed += events.feed(body[at : at + size])
        at += size
        so_far = body[:at]
        whole = so_far.rfind(end.encode())
        assert passed == (so_far[: whole + len(end)] if whole >= 0 else b"")
        assert events.events == passed.count(end.encode())
    assert passed == body
    assert events.feed(b"data: hal") == b""
    assert events.rest() == b"data: hal"
    assert events.rest() == b""


@pytest.mark.parametrize("end", ENDS)
def test_an_endless_event_passes_in_parts(end: str) -> None:
    events = WholeEvents(limit=16)
    assert events.feed(b"data: 1234567890") == b""
    assert events.feed(b"1") == b"data: 12345678901"
    assert events.partial
    assert events.feed(end.encode()) == end.encode()
    assert not events.partial
    assert events.events == 1
