"""The demo's event-stream decoder."""

from __future__ import annotations

import itertools

import pytest
from examples.demo.sse import MAX_LINE, Event, EventDecoder
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("", []),
        ("data: one\n\n", [Event("message", "one")]),
        ("data:one\n\n", [Event("message", "one")]),
        ("data:  two blanks\n\n", [Event("message", " two blanks")]),
        ("event: token\ndata: 1\n\n", [Event("token", "1")]),
        ("event: token\r\ndata: 1\r\n\r\n", [Event("token", "1")]),
        ("event: token\rdata: 1\r\r.", [Event("token", "1")]),
        ("data: a\ndata: b\n\n", [Event("message", "a\nb")]),
        (": a comment\n\ndata: x\n\n", [Event("message", "x")]),
        ("event: nothing\n\ndata: x\n\n", [Event("message", "x")]),
        ("id: 7\nretry: 10\ndata: x\n\n", [Event("message", "x")]),
        ("data: not yet ended\n", []),
    ],
)
def test_decodes(text: str, events: list[Event]) -> None:
    assert EventDecoder().feed(text.encode()) == events


@given(
    texts=st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), min_size=1), max_size=6),
    end=st.sampled_from(["\n", "\r\n"]),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_any_split_gives_the_same_events(texts: list[str], end: str, cuts: list[int]) -> None:
    stream = "".join(f"event: token{end}data: {text}{end}{end}" for text in texts).encode()
    decoder = EventDecoder()
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    events = [event for a, b in itertools.pairwise(edges) for event in decoder.feed(stream[a:b])]
    assert events == [Event("token", text) for text in texts]


def test_endless_line_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        EventDecoder().feed(b"data: " + b"x" * MAX_LINE)
