"""Attackers of the sessions port, as a process of their own: they flood, and report how they fared.

`python -m tests.support.peers.flood ADDRESS SECONDS HEADERS KIND...` prints a line of JSON for each kind.
HEADERS is a JSON object: the headers of its calls, a key for example.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections import Counter

from h2.connection import H2Connection
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

RATE = 3_000_000
"""Bytes a second, as in the attack that was found."""
CHUNK = 60_000
HEADERS: dict[str, str] = {}


def _repeated(frame: Frame) -> bytes:
    data = frame.serialize()
    return data * max(1, CHUNK // len(data))


def _call(stream: int, flags: list[str], extra: bytes = b"") -> bytes:
    connection = H2Connection()
    pseudo = {":method": "POST", ":path": "/x/y", ":scheme": "http", ":authority": "a"}
    block = connection.encoder.encode([*pseudo.items(), *HEADERS.items()], huffman=False)
    return bytes(HeadersFrame(stream, block + extra, flags=flags).serialize())


def _many_calls(reset: bool) -> bytes:
    data = b""
    for stream in range(1, 2000, 2):
        data += _call(stream, ["END_HEADERS", "END_STREAM"] if not reset else ["END_HEADERS"])
        if reset:
            data += b"\x00\x00\x04\x03\x00" + stream.to_bytes(4) + b"\x00\x00\x00\x08"
    return data


KINDS = {
    "ping": lambda: _repeated(PingFrame(0, b"12345678")),
    "settings": lambda: _repeated(SettingsFrame(0, {4: 65535})),
    "long settings": lambda: _repeated(SettingsFrame(0, dict.fromkeys(range(10_000, 19_000), 1))),
    "priority": lambda: _repeated(PriorityFrame(3, depends_on=0, stream_weight=7)),
    "window update": lambda: _repeated(WindowUpdateFrame(0, 1)),
    "unknown": lambda: b"\x00\x00\x01\xf0\x00\x00\x00\x00\x00x" * (CHUNK // 10),
    "empty data": lambda: _call(1, ["END_HEADERS"]) + _repeated(DataFrame(1, b"")),
    "padded data": lambda: (
        _call(1, ["END_HEADERS"]) + b"\x00\x00\x08\x00\x08\x00\x00\x00\x01\x07       " * (CHUNK // 17)
    ),
    "tiny data": lambda: _call(1, ["END_HEADERS"]) + _repeated(DataFrame(1, b"x")),
    "continuation": lambda: _call(1, []) + _repeated(ContinuationFrame(1, b"\x82" * 16_000)),
    "empty continuation": lambda: _call(1, []) + _repeated(ContinuationFrame(1, b"")),
    "many headers": lambda: b"".join(
        _call(stream, ["END_HEADERS"], b"\x90" * 1000) for stream in range(1, 1000, 2)
    ),
    "rapid reset": lambda: _many_calls(True),
    "calls without a key": lambda: _many_calls(False),
}


def main(address: str, kind: str, seconds: float) -> None:
    """Flood, on a new connection whenever one is closed."""
    host, _, port = address.rpartition(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0, {}).serialize()
    data = KINDS[kind]()
    sent, connections, codes = 0, 0, Counter[str]()
    longest = 0
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        connections += 1
        here = 0
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            received = b""
            try:
                connection.sendall(preface)
                while time.monotonic() - began < seconds:
                    connection.sendall(data)
                    here += len(data)
                    time.sleep(max(0.0, (sent + here) / RATE - (time.monotonic() - began)))
                    connection.setblocking(False)
                    try:
                        while piece := connection.recv(65536):
                            received += piece
                        break
                    except BlockingIOError:
                        connection.settimeout(2)
            except (OSError, TimeoutError):
                pass
            connection.settimeout(1)
            try:
                while piece := connection.recv(65536):
                    received += piece
            except OSError:
                pass
        sent += here
        longest = max(longest, here)
        codes[_goaway(received)] += 1
        time.sleep(0.005)
    report = {"kind": kind, "sent": sent, "connections": connections, "codes": codes, "longest": longest}
    print(json.dumps(report), flush=True)  # noqa: T201


def _goaway(received: bytes) -> str:
    while len(received) >= 9:
        frame, length = Frame.parse_frame_header(memoryview(received[:9]))
        if isinstance(frame, GoAwayFrame):
            frame.parse_body(memoryview(received[9 : 9 + length]))
            return str(int(frame.error_code))
        received = received[9 + length :]
    return "none"


if __name__ == "__main__":
    HEADERS.update(json.loads(sys.argv[3]))
    for each in sys.argv[4:]:
        main(sys.argv[1], each, float(sys.argv[2]))
