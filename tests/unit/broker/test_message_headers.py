"""The parser of message headers gives what the library's gives."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from nvcf_broker.client import BaseClient
from nvcf_broker.message_headers import parse_header_lines

PIECES = st.sampled_from(
    [
        b"Nvcf-Reply-Subject",
        b"a",
        b":",
        b": ",
        b" ",
        b"\t",
        b"\r\n",
        b"\r",
        b"\n",
        b"\x1c",
        b"\xa0",
        b"\xc3\xa4",
        b"\xff",
    ]
)


@given(st.one_of(st.lists(PIECES, max_size=12).map(b"".join), st.binary(max_size=60)))
def test_headers_are_those_of_the_library(raw: bytes) -> None:
    expected = Client._parse_header_lines(raw)
    # A header without a name cannot be sent and is not looked for.
    expected.pop("", None)
    assert parse_header_lines(raw) == expected


def test_the_library_calls_this_parser() -> None:
    # Its own would return the nameless one, too.
    raw = b"NATS/1.0\r\nNvcf-Kept: true\r\nNvcf-Deliveries:2\r\n: nameless\r\n\r\n"
    headers = asyncio.run(BaseClient()._process_headers(raw))
    assert headers == {"Nvcf-Kept": "true", "Nvcf-Deliveries": "2"}
