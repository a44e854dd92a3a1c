"""The h1 codec: what goes in comes out, split anywhere; what is hostile is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto.errors import H1Error
from nvcf_proto.h1 import (
    RequestDecoder,
    RequestHead,
    ResponseDecoder,
    ResponseHead,
    encode_request_head,
    encode_response_head,
)

TOKEN = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=20)
# Any latin-1 character but controls; white space at the ends is not part of a value (RFC 9110 5.5).
VALUE = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60
).map(lambda text: text.strip(" \t"))
HEADERS = st.lists(st.tuples(TOKEN, VALUE), max_size=64)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` cut at `places` (taken modulo its length)."""
    ends = sorted({place % (len(data) + 1) for place in places})
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(
    status=st.integers(200, 599),
    headers=HEADERS,
    body=st.binary(max_size=300),
    places=st.lists(st.integers(0, 10_000), max_size=20),
)
def test_response_survives_any_split(
    status: int, headers: list[tuple[str, str]], body: bytes, places: list[int]
) -> None:
    decoder = ResponseDecoder()
    events: list[ResponseHead | bytes] = []
    for part in cut(encode_response_head(status, headers, "Reason") + body, places):
        events += decoder.feed(part)
    decoder.close()
    head, *rest = events
    assert head == ResponseHead(status, headers, "Reason")
    assert b"".join(part for part in rest if isinstance(part, bytes)) == body


@given(
    method=TOKEN,
    target=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=80),
    headers=HEADERS,
    body=st.binary(max_size=100),
    places=st.lists(st.integers(0, 10_000), max_size=10),
)
def test_request_survives_any_split(
    method: str, target: str, headers: list[tuple[str, str]], body: bytes, places: list[int]
) -> None:
    decoder = RequestDecoder()
    events: list[RequestHead | bytes] = []
    for part in cut(encode_request_head(method, target, headers) + body, places):
        events += decoder.feed(part)
    head, *rest = events
    assert head == RequestHead(method, target, headers)
    assert b"".join(part for part in rest if isinstance(part, bytes)) == body


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=8))
def test_any_bytes_are_decoded_or_refused_the_same_however_they_are_split(
    data: bytes, places: list[int]
) -> None:
    def outcome(parts: list[bytes]) -> object:
        decoder = ResponseDecoder(max_head_bytes=200)
        events: list[ResponseHead | bytes] = []
        try:
            for part in parts:
                events += decoder.feed(part)
            decoder.close()
        except H1Error:
            return "refused"
        return events[0], b"".join(part for part in events[1:] if isinstance(part, bytes))

    assert outcome([data]) == outcome(cut(data, places))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nA: b\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 700 Odd\r\n\r\n",
        b"HTTP/1.1 200 O\x00K\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\n\n",
        b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n",
    ],
)
def test_malformed_heads_are_refused(head: bytes) -> None:
    def decode() -> None:
        decoder = ResponseDecoder()
        decoder.feed(head)
        decoder.close()

    with pytest.raises(H1Error):
        decode()


def test_limits_hold_before_the_head_is_complete() -> None:
    with pytest.raises(H1Error, match="larger than"):
        ResponseDecoder(max_head_bytes=100).feed(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200)
    with pytest.raises(H1Error, match="more than 64 headers"):
        ResponseDecoder().feed(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 65 + b"\r\n")
    assert ResponseDecoder().feed(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 64 + b"\r\n")


def test_reason_may_be_missing() -> None:
    assert ResponseDecoder().feed(b"HTTP/1.1 204\r\n\r\n") == [ResponseHead(204, [], "")]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (99, []),
        (600, []),
        (200, [("bad name", "x")]),
        (200, [("", "x")]),
        (200, [("a", "x\r\nevil: 1")]),
        (200, [("a", "x\ny")]),
        (200, [("a", "\u4e2d")]),
    ],
)
def test_what_cannot_be_sent_in_one_line_is_not_encoded(status: int, headers: list[tuple[str, str]]) -> None:
    with pytest.raises(H1Error):
        encode_response_head(status, headers)


@pytest.mark.parametrize(
    ("method", "target"), [("GET", "/a b"), ("G T", "/"), ("GET", ""), ("GET", "/\r\nx")]
)
def test_request_line_cannot_be_split(method: str, target: str) -> None:
    with pytest.raises(H1Error):
        encode_request_head(method, target, [])
