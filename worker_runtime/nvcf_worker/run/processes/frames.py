"""What worker and child process say to each other over their socket pair.

A frame is a head of 9 bytes (payload size, kind, number of the call; big-endian) and the payload. Pickle
is used inside payloads: both ends are processes of the same worker, started by it with the same code.
"""

from __future__ import annotations

import enum
import struct

from nvcf_worker.errors import ChannelError

HEAD = struct.Struct("!IBI")
PIECE = 256 * 1024
"""Bytes of a body in one frame at most, so that one call's body never blocks the others for long."""

WINDOW = 512 * 1024
"""Bytes of one body that may be under way before the reader has asked for more."""

MAX_PAYLOAD = 64 * 1024 * 1024


class Frame(enum.IntEnum):
    """Kinds of frames; W = sent by the worker, C = by the child."""

    START = 1  # W: a request
    CANCEL = 2  # W: stop it
    BODY = 3  # W: a piece of its body
    BODY_END = 4  # W
    BODY_FAILED = 5  # W: an error, packed
    CREDIT = 6  # both: so many bytes have been read
    STOP = 7  # W: finish and exit
    READY = 10  # C: requests may come
    NEED_BODY = 11  # C: the handler reads the body
    PART = 12  # C: a piece of a large complete answer
    REPLY = 13  # C: a complete answer (or the rest of it); ends the call
    STREAM = 14  # C: status, headers and first chunk of a streamed answer
    CHUNK = 15  # C
    END = 16  # C: the stream is complete; ends the call
    FAILED = 17  # C: an error, packed; ends the call
    GONE = 18  # C: it was cancelled and has ended
    PROGRESS = 19  # C: the handler tells how far it is
    OUTPUT = 20  # C: the handler made the output directory
    FIGURE = 21  # C: a value for the worker's figures, of no call
    UNHEALTHY = 22  # C: why the function is unhealthy, of no call


def encode(kind: Frame, call: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEAD.pack(len(payload), kind, call) + payload


class FrameDecoder:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[Frame, int, bytes]]:
        """The frames that are complete now. Raises ChannelError for what cannot be one."""
        buffer = self._buffer
        buffer += data
        frames: list[tuple[Frame, int, bytes]] = []
        at = 0
        while len(buffer) - at >= HEAD.size:
            size, kind, call = HEAD.unpack_from(buffer, at)
            if size > MAX_PAYLOAD:
                raise ChannelError(f"a frame of {size} bytes")
            end = at + HEAD.size + size
            if len(buffer) < end:
                break
            try:
                frames.append((Frame(kind), call, bytes(buffer[at + HEAD.size : end])))
            except ValueError as error:
                raise ChannelError(str(error)) from error
            at = end
        del buffer[:at]
        return frames
