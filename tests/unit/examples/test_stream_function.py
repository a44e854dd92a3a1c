"""The streaming function: its events, and what it says to bad input."""

from __future__ import annotations

import json

import pytest
from examples.demo.caller import parse_json
from examples.demo.sse import EventDecoder
from examples.stream.function import DEFAULT_TEXT, Order, parse_order, speak, tokens
from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker import BadInput


@given(st.text())
def test_tokens_are_the_text_again(text: str) -> None:
    assert "".join(tokens(text)) == text
    assert all(token.strip() for token in tokens(text)[:-1])


@pytest.mark.parametrize(
    ("body", "order"),
    [
        (b"", Order()),
        (b" \n", Order()),
        (b"{}", Order()),
        (b'{"text": "a b"}', Order("a b")),
        (b'{"text": "a", "pace": 2}', Order("a", 2.0)),
        (b'{"pace": 0, "more": true}', Order(pace=0.0)),
    ],
)
def test_orders(body: bytes, order: Order) -> None:
    assert parse_order(body) == order


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"text": 3}', "text must be"),
        (b'{"text": " "}', "text must be"),
        (json.dumps({"text": "x" * 20_001}).encode(), "text must be"),
        (b'{"pace": "fast"}', "pace must be"),
        (b'{"pace": -1}', "pace must be"),
        (b'{"pace": 11}', "pace must be"),
        (b'{"pace": true}', "pace must be"),
        (b'{"pace": NaN}', "pace must be"),
    ],
)
def test_bad_orders_are_refused_in_words(body: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse_order(body)


async def test_one_event_a_token_and_a_last_one() -> None:
    decoder = EventDecoder()
    sent = [decoder.feed(data) async for data in speak(Order(DEFAULT_TEXT, pace=0))]
    assert [len(events) for events in sent] == [1] * len(sent)
    events = [event for events in sent for event in events]
    assert {event.name for event in events[:-1]} == {"token"}
    assert "".join(parse_json(event.data)["token"] for event in events[:-1]) == DEFAULT_TEXT
    assert [parse_json(event.data)["index"] for event in events[:-1]] == list(range(len(events) - 1))
    assert events[-1].name == "done"
    assert parse_json(events[-1].data)["tokens"] == len(events) - 1
