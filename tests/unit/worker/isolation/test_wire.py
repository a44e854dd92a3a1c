"""Frames, errors and responses between worker and child."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker.errors import (
    BadInput,
    ChannelError,
    Fatal,
    FunctionError,
    HandlerFailed,
    InvalidInput,
    MethodNotAllowed,
    RetryLater,
)
from nvcf_worker.run.processes.channel import HEAD, MAX_PAYLOAD, Frame, FrameDecoder, encode
from nvcf_worker.run.processes.packing import PackedResponse, pack_error, unpack_error


@given(
    st.lists(st.tuples(st.sampled_from(list(Frame)), st.integers(0, 2**32 - 1), st.binary(max_size=300))),
    st.lists(st.integers(0, 3000)),
)
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    frames: list[tuple[Frame, int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(encode(*frame) for frame in frames)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    decoder = FrameDecoder()
    decoded = [frame for a, b in itertools.pairwise(edges) for frame in decoder.feed(data[a:b])]
    assert decoded == frames


@pytest.mark.parametrize("head", [HEAD.pack(MAX_PAYLOAD + 1, 1, 1), HEAD.pack(0, 99, 1)])
def test_what_is_no_frame_is_refused(head: bytes) -> None:
    with pytest.raises(ChannelError):
        FrameDecoder().feed(head)


class WithArguments(FunctionError):
    status = 418

    def __init__(self, first: int, *, second: str) -> None:
        super().__init__(f"{first} {second}")
        self.first = first


@pytest.mark.parametrize(
    "error",
    [
        BadInput("why"),
        InvalidInput([("a.b", "missing"), ("", "empty")]),
        MethodNotAllowed("no", ["GET", "PUT"]),
        RetryLater("busy", after=2.5),
        Fatal("the GPU is gone"),
        WithArguments(1, second="two"),
    ],
)
def test_errors_that_the_worker_knows_cross_as_they_are(error: Exception) -> None:
    crossed = unpack_error(pack_error(error))
    assert type(crossed) is type(error)
    assert str(crossed) == str(error)
    assert vars(crossed) == vars(error)


def test_other_errors_cross_as_text_with_their_traceback() -> None:
    def handler() -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError) as caught:
        handler()
    crossed = unpack_error(pack_error(caught.value))
    assert isinstance(crossed, HandlerFailed)
    assert str(crossed) == "KeyError: 'inside'"
    assert "in handler" in str(crossed.__cause__)


def test_an_error_that_cannot_be_pickled_crosses_as_text() -> None:
    error = BadInput("why")
    error.extra = {"function": lambda: None}
    crossed = unpack_error(pack_error(error))
    assert isinstance(crossed, HandlerFailed)
    assert "why" in str(crossed)


def test_responses() -> None:
    response = PackedResponse(201, [("a", "b")], b"body", 10)
    assert PackedResponse.unpack(response.pack()) == response
