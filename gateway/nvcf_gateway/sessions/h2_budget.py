"""What one HTTP/2 connection may cost its gateway: frames are counted before they are parsed.

Frames that carry no call (PING, SETTINGS, PRIORITY, RST_STREAM, WINDOW_UPDATE, empty DATA, unknown ones) cost
a gateway as much as those that do, and a peer can send them without end. A token bucket bounds them. Before
the peer has shown a valid key, it bounds all frames. What a peer has to send in response to ours comes on
top: it may update its windows for each frame of data that it gets.
"""

from __future__ import annotations

from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, SettingsFrame

from nvcf_gateway.sessions.h2_protocol import MAX_FRAME, MAX_HEADER_LIST

TURN = 64
"""Cost that one connection may cause before others have their turn. A small frame costs 1."""
FIRST_BURST, FIRST_PER_SECOND = 200.0, 20.0
"""Frames of a connection without a valid key: clients send about ten before their first call."""
BURST, PER_SECOND = 2000.0, 200.0
EARNED_MAX = 20_000.0
EARNED_BY_DATA = 3.0
"""Two window updates and a ping, as gRPC sends them."""
EARNED_BY_CALL = 4.0
REFUSAL = 8.0
MAX_CONTINUATIONS = 16

_DATA, _HEADERS, _SETTINGS, _CONTINUATION = (
    kind.type for kind in (DataFrame, HeadersFrame, SettingsFrame, ContinuationFrame)
)
_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8
_HEAD = 9
_PREFACE = 24


class TooMuch(ProtocolError):
    """The peer sends more than a connection may cost."""

    error_code = ErrorCodes.ENHANCE_YOUR_CALM


class FrameTooLarge(ProtocolError):
    """A frame is larger than this side has announced."""

    error_code = ErrorCodes.FRAME_SIZE_ERROR


class FrameBudget:
    """Counts one connection's frames. Times are seconds of any steady clock."""

    def __init__(self, now: float, *, preface: bool) -> None:
        self._burst, self._per_second = FIRST_BURST, FIRST_PER_SECOND
        self._tokens = self._burst
        self._earned = 0.0
        self._filled = now
        self._admitted = False
        # Bytes of the current frame, or of the preface, that are still to come.
        self._left = _PREFACE if preface else 0
        self._head = b""
        self._block = 0
        self._continuations = 0

    def admit(self) -> None:
        """Trust the peer with more: it has shown a valid key or token."""
        if not self._admitted:
            self._admitted = True
            self._burst, self._per_second = BURST, PER_SECOND
            self._tokens += BURST - FIRST_BURST

    def earn(self, frames: float) -> None:
        """Let the peer send so many more frames, in response to what was sent to it."""
        self._earned = min(EARNED_MAX, self._earned + frames)

    def spend(self, cost: float, now: float) -> None:
        """Count a cost. Raises TooMuch."""
        if self._earned >= cost:
            self._earned -= cost
            return
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._per_second)
        self._filled = now
        if self._tokens < cost:
            raise TooMuch("too many control frames, or refused calls")
        self._tokens -= cost

    def take(self, data: bytes, now: float) -> int:
        """Count the frames of `data`; return how many of its bytes make up one turn.

        Raises TooMuch and FrameTooLarge: nothing of `data` should be parsed then.
        """
        at, end, turn = 0, len(data), 0.0
        while at < end and turn < TURN:
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
                continue
            piece = data[at : at + _HEAD - len(self._head)]
            at += len(piece)
            self._head += piece
            if len(self._head) == _HEAD:
                head, self._head = self._head, b""
                self._left = int.from_bytes(head[:3])
                turn += self._count(head[3], head[4], self._left, now)
        return at if turn >= TURN else end

    def _count(self, kind: int, flags: int, length: int, now: float) -> float:
        """Count a frame; return its share of a turn."""
        if length > MAX_FRAME:
            raise FrameTooLarge(f"a frame of {length} bytes is larger than announced")
        if kind in (_HEADERS, _CONTINUATION):
            self._count_block(kind, flags, length)
        # Empty, or so padded that it may well be.
        hollow = kind == _DATA and (length == 0 or (length <= 256 and bool(flags & _PADDED)))
        carries = kind == _HEADERS or (kind == _DATA and (not hollow or bool(flags & _END_STREAM)))
        if not carries or not self._admitted:
            # A change of settings reaches all streams, and a long frame of control is many small ones.
            self.spend((20 if kind == _SETTINGS and length else 1) + (0 if carries else length // 64), now)
        elif kind == _HEADERS:
            self.earn(EARNED_BY_CALL)
        return 1.0 + (length / 16 if kind in (_HEADERS, _CONTINUATION) else 0.0)

    def _count_block(self, kind: int, flags: int, length: int) -> None:
        if kind == _HEADERS:
            self._block, self._continuations = 0, 0
        else:
            self._continuations += 1
        self._block += length
        if self._block > MAX_HEADER_LIST or self._continuations > MAX_CONTINUATIONS:
            raise TooMuch(f"a header block has more than {MAX_HEADER_LIST} bytes or too many parts")
        if flags & _END_HEADERS:
            self._block, self._continuations = 0, 0
