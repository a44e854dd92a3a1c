"""The budget of an HTTP/2 connection: what ordinary clients send fits, floods do not."""

from __future__ import annotations

import pytest
from h2.exceptions import ProtocolError
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, PingFrame, WindowUpdateFrame

from nvcf_gateway.sessions.h2_budget import (
    BURST,
    EARNED_BY_DATA,
    FIRST_BURST,
    TURN,
    FrameBudget,
    FrameTooLarge,
    TooMuch,
)


def frames(frame: Frame, count: int) -> bytes:
    return bytes(frame.serialize()) * count


def taken(budget: FrameBudget, data: bytes, now: float = 0.0) -> int:
    """Take all of `data`; return the number of turns."""
    turns = 0
    while data:
        data = data[budget.take(data, now) :]
        turns += 1
    return turns


PING = PingFrame(0, b"12345678")
DATA = DataFrame(1, b"x" * 100)
HEADERS = HeadersFrame(1, b"\x82" * 16, flags=["END_HEADERS"])


def test_all_frames_count_until_a_key_was_shown_and_control_frames_after() -> None:
    budget = FrameBudget(0.0, preface=False)
    with pytest.raises(TooMuch):
        taken(budget, frames(DATA, int(FIRST_BURST) + 1))
    budget = FrameBudget(0.0, preface=False)
    budget.admit()
    taken(budget, frames(DATA, 50_000) + frames(PING, int(BURST)))
    with pytest.raises(TooMuch):
        taken(budget, frames(PING, 1))


def test_time_and_what_the_peer_gets_fill_it_again() -> None:
    budget = FrameBudget(0.0, preface=False)
    taken(budget, frames(PING, int(FIRST_BURST)))
    taken(budget, frames(PING, 20), now=1.0)
    for _ in range(1000):
        budget.earn(EARNED_BY_DATA)
        taken(budget, frames(WindowUpdateFrame(0, 1), 2), now=1.0)


@pytest.mark.parametrize("size", [1, 5, 9, 10, 4096])
def test_frames_are_found_in_pieces_of_any_size(size: int) -> None:
    budget = FrameBudget(0.0, preface=True)
    data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames(DATA, 3) + frames(PING, int(FIRST_BURST) - 3)
    for at in range(0, len(data), size):
        taken(budget, data[at : at + size])
    with pytest.raises(TooMuch):
        taken(budget, frames(PING, 1))


def test_a_turn_is_some_frames_or_a_large_header_block() -> None:
    budget = FrameBudget(0.0, preface=False)
    budget.admit()
    assert taken(budget, frames(DATA, TURN - 1)) == 1
    assert taken(budget, frames(DATA, TURN * 10)) >= 10
    assert taken(budget, frames(HeadersFrame(1, b"\x90" * 1600, flags=["END_HEADERS"]), 5)) >= 5
    assert taken(budget, frames(DataFrame(1, b"x" * 16_384), 16)) == 1


def test_header_blocks_and_frames_are_bounded_before_they_are_complete() -> None:
    budget = FrameBudget(0.0, preface=False)
    taken(budget, frames(HeadersFrame(1, b"x"), 1))
    with pytest.raises(TooMuch):
        taken(budget, frames(ContinuationFrame(1, b"x" * 16_000), 5)[:-15_000])
    budget = FrameBudget(0.0, preface=False)
    taken(budget, frames(HeadersFrame(1, b"x"), 1))
    with pytest.raises(ProtocolError):
        taken(budget, frames(ContinuationFrame(1, b"x"), 17))
    with pytest.raises(FrameTooLarge):
        FrameBudget(0.0, preface=False).take(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", 0.0)
